"""The exact output layer: softmax cross-entropy over a vocabulary that is sharded over workers.

Every worker computes the logits of all workers' tokens against the rows of its own shard, block of
tokens by block of tokens. Per block the workers exchange four numbers a token; with the global
normaliser known, the block's gradients are formed at once, so no block of logits outlives its turn
and nothing is computed twice. Parallel over the vocabulary as in Megatron-LM (Shoeybi et al. 2019,
arXiv 1909.08053), in blocks with the gradient in the same pass as in Liger Kernel (Hsu et al.
2024, arXiv 2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dist_embed.parallel.collectives import gather_equal, gather_rows, sum_and_scatter_rows
from dist_embed.parallel.group import Group


@dataclass(frozen=True)
class OutputShard:
    """Which rows of the output layer this worker holds, and how to compute with them.

    Attributes:
        group: this worker and its peers.
        first_row: row number of the first own row.
        num_rows: V, rows over all shards.
        block_bytes: upper bound for one block of float32 logits.
        dtype: type of the matrix products' operands; sums are always float32.
    """

    group: Group
    first_row: int
    num_rows: int
    block_bytes: int
    dtype: torch.dtype = torch.float32

    def in_float32(self) -> OutputShard:
        """The same shard with float32 products: for evaluation and search."""
        return replace(self, dtype=torch.float32)

    @property
    def block_tokens(self) -> int:
        """Tokens per block; the same on every worker, as every block is an exchange."""
        longest_shard = -(-self.num_rows // self.group.num_workers)
        return max(1, self.block_bytes // (4 * longest_shard))


def sharded_cross_entropy(
    hidden: Tensor,
    target_rows: Tensor,
    weight: Tensor,
    shard: OutputShard,
    counts: list[int],
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of every worker's tokens over the whole vocabulary.

    With smoothing ε a token's loss is (1 - ε) · -log p(target) + ε · mean over the vocabulary of
    -log p, PyTorch's definition (Szegedy et al. 2016, arXiv 1512.00567).

    Args:
        hidden: [n, D] decoder outputs of this worker's tokens; n may be 0.
        target_rows: [n] row numbers of the right answers.
        weight: [R, D] the output layer's rows of this worker's shard; R may be 0.
        shard: where those rows lie.
        counts: n of every worker.
        label_smoothing: ε.

    Returns:
        Two float32 scalars, the same on every worker: the sum over all workers' tokens of the
        smoothed loss, with gradients to ``hidden`` and ``weight``, and of -log p(target).

    Collective.
    """
    smoothed, nll = _ShardedCrossEntropy.apply(
        hidden, weight, target_rows, shard, counts, label_smoothing
    )
    return smoothed, nll


class _ShardedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one forward pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target_rows: Tensor,
        shard: OutputShard,
        counts: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        want_gradient = any(ctx.needs_input_grad[:2])
        all_hidden = gather_rows(hidden.detach(), counts, shard.group).to(shard.dtype)
        all_targets = gather_rows(target_rows, counts, shard.group)
        blocks = _LogitBlocks(weight.detach(), shard)
        # The sum of all logits of a token, for label smoothing, without a pass over the logits.
        summed_rows = weight.detach().sum(0)
        grad_hidden = torch.empty_like(all_hidden, dtype=torch.float32) if want_gradient else None
        grad_weight = torch.zeros_like(weight) if want_gradient else None
        smoothed = torch.zeros((), device=hidden.device)
        nll = torch.zeros((), device=hidden.device)
        for start in range(0, all_hidden.shape[0], blocks.num_tokens):
            block = slice(start, start + blocks.num_tokens)
            h = all_hidden[block]
            logits = blocks.logits(h)
            index = all_targets[block] - shard.first_row
            here = ((index >= 0) & (index < weight.shape[0])).nonzero().squeeze(-1)
            index = index[here]
            target_logit = logits.new_zeros(h.shape[0])
            target_logit[here] = logits[here, index]
            maximum, total = _exponentials(logits)
            stats = torch.stack([maximum, total, target_logit, h.float() @ summed_rows])
            stats = gather_equal(stats, shard.group)
            log_z = _log_normaliser(stats[:, 0], stats[:, 1])
            block_nll = log_z - stats[:, 2].sum(0)
            spread = log_z - stats[:, 3].sum(0) / shard.num_rows
            nll += block_nll.sum()
            smoothed += ((1 - label_smoothing) * block_nll + label_smoothing * spread).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            # d loss / d logits = p - (1 - ε) onehot - ε / V; the last term, the same for every
            # word, is added below without touching the block.
            grad = logits.mul_((maximum - log_z).exp().unsqueeze(1))
            grad[here, index] -= 1 - label_smoothing
            blocks.add_gradients(grad, h, grad_hidden[block], grad_weight)
        if grad_hidden is not None and grad_weight is not None and label_smoothing:
            share = label_smoothing / shard.num_rows
            grad_hidden -= share * summed_rows
            grad_weight -= share * all_hidden.sum(0, dtype=torch.float32)
        if grad_hidden is not None and grad_weight is not None:
            own_grad_hidden = sum_and_scatter_rows(grad_hidden, counts, shard.group)
            ctx.save_for_backward(own_grad_hidden.to(hidden.dtype), grad_weight)
        ctx.mark_non_differentiable(nll)
        return smoothed, nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_loss = grad_outputs[0]
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None, None, None


class _LogitBlocks:
    """Logits of one block of tokens after the other, in one buffer that is used again."""

    def __init__(self, weight: Tensor, shard: OutputShard) -> None:
        self.num_tokens = shard.block_tokens
        self._operand = weight.to(shard.dtype)
        size = (self.num_tokens, weight.shape[0])
        self._buffer = torch.empty(size, device=weight.device)
        self._narrow = (
            None
            if shard.dtype == torch.float32
            else torch.empty_like(self._buffer, dtype=shard.dtype)
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[b, D] to [b, R] float32, valid until the next call."""
        out = self._buffer[: hidden.shape[0]]
        if self._narrow is None:
            return torch.mm(hidden, self._operand.t(), out=out)
        return out.copy_(torch.mm(hidden, self._operand.t(), out=self._narrow[: hidden.shape[0]]))

    def add_gradients(
        self, grad: Tensor, hidden: Tensor, grad_hidden: Tensor, grad_weight: Tensor
    ) -> None:
        """From d loss / d logits [b, R]: set ``grad_hidden`` [b, D], add to the weights'."""
        if self._narrow is None:
            torch.mm(grad, self._operand, out=grad_hidden)
            grad_weight.addmm_(grad.t(), hidden)
            return
        narrow = self._narrow[: hidden.shape[0]].copy_(grad)
        grad_hidden.copy_(narrow @ self._operand)
        grad_weight += narrow.t() @ hidden


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits [b, R] by exp(logits - their maximum); returns maximum and sum, each [b]."""
    if not logits.shape[1]:  # a worker without rows
        nothing = logits.new_zeros(logits.shape[0])
        return nothing.fill_(float("-inf")), torch.zeros_like(nothing)
    maximum = logits.amax(1)
    return maximum, logits.sub_(maximum.unsqueeze(1)).exp_().sum(1)


def _log_normaliser(maximum: Tensor, total: Tensor) -> Tensor:
    """Log Σ exp(logit) over all shards from each shard's maximum and sum [W, b]: [b]."""
    highest = maximum.amax(0)
    return highest + ((maximum - highest).exp() * total).sum(0).log()


def top_log_probabilities(
    hidden: Tensor, weight: Tensor, own_ids: Tensor, shard: OutputShard, counts: list[int], k: int
) -> tuple[Tensor, Tensor]:
    """The k most probable next words of every token, over the whole vocabulary.

    Args:
        hidden: [n, D] of this worker's hypotheses; n may be 0.
        weight: [R, D] the output layer's rows of this worker's shard.
        own_ids: [R] the ids of those rows.
        shard: where those rows lie.
        counts: n of every worker.
        k: words per token, at most V.

    Returns:
        log probabilities [n, k], highest first, and their ids [n, k] (int64), equal
        probabilities in the order of ids (which of more than k equal ones are kept is open).

    Collective.
    """
    all_hidden = gather_rows(hidden, counts, shard.group).to(shard.dtype)
    blocks = _LogitBlocks(weight, shard)
    num_tokens = all_hidden.shape[0]
    best = torch.full((num_tokens, k), float("-inf"), device=hidden.device)
    best_ids = torch.full((num_tokens, k), shard.num_rows, device=hidden.device)
    stats = best.new_zeros((2, num_tokens))
    take = min(k, weight.shape[0])
    for start in range(0, num_tokens, blocks.num_tokens):
        block = slice(start, start + blocks.num_tokens)
        logits = blocks.logits(all_hidden[block])
        values, index = logits.topk(take, dim=1)
        best[block, :take] = values
        best_ids[block, :take] = own_ids[index]
        stats[0, block], stats[1, block] = _exponentials(logits)
    maximum, total = gather_equal(stats, shard.group).unbind(1)
    log_z = _log_normaliser(maximum, total)
    # [N, W * k] candidates; sorting by id first makes the stable sort by value break ties by id.
    values = gather_equal(best, shard.group).transpose(0, 1).reshape(num_tokens, -1)
    ids = gather_equal(best_ids, shard.group).transpose(0, 1).reshape(num_tokens, -1)
    ids, by_id = ids.sort(dim=1, stable=True)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    start = sum(counts[: shard.group.rank])
    mine = slice(start, start + counts[shard.group.rank])
    log_probabilities = values[mine, :k] - log_z[mine].unsqueeze(1)
    return log_probabilities, ids.gather(1, by_value)[mine, :k]

"""The exact output layer: softmax cross-entropy over a vocabulary that is sharded over workers.

Every worker computes the logits of all workers' tokens against the rows of its own shard, block of
tokens by block of tokens. Per block the workers exchange four numbers a token; with the global
normaliser known, the block's gradients are formed at once, so no block of logits outlives its turn
and nothing is computed twice. Parallel over the vocabulary as in Megatron-LM (Shoeybi et al. 2019,
arXiv 1909.08053), in blocks with the gradient in the same pass as in Liger Kernel (Hsu et al.
2024, arXiv 2410.10989). Where the shard is so large that a block would hold few tokens, and where
no gradient is wanted, it goes by tiles instead, with one exchange: `dist_embed.model.logit_tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dist_embed.embedding.memory import LEAST_BLOCK_TOKENS, block_tokens
from dist_embed.embedding.own_rows import OwnGradient
from dist_embed.embedding.tables import lies_in_host_memory
from dist_embed.model.logit_blocks import LogitBlocks, Picked, exponentials, log_normaliser
from dist_embed.model.logit_tiles import LogitTiles
from dist_embed.parallel.collectives import gather_rows, stack_over_workers, sum_and_scatter_rows
from dist_embed.parallel.group import Group

SUMMED_ROWS = 65536


@dataclass(frozen=True)
class OutputShard:
    """Which rows of the output layer this worker holds, and how to compute with them.

    Attributes:
        group: this worker and its peers.
        first_row: row number of the first own row.
        num_rows: V, rows over all shards.
        block_bytes: upper bound for one block of float32 logits.
        dtype: type of the matrix products' operands; sums are always float32.
        reading_bytes: ``block_bytes`` of evaluation and search; None: the same.
    """

    group: Group
    first_row: int
    num_rows: int
    block_bytes: int
    dtype: torch.dtype = torch.float32
    reading_bytes: int | None = None

    def in_float32(self) -> OutputShard:
        """The same shard with float32 products: for evaluation and search."""
        block_bytes = self.reading_bytes or self.block_bytes
        return replace(self, dtype=torch.float32, block_bytes=block_bytes)

    @property
    def block_tokens(self) -> int:
        """Tokens per block; the same on every worker, as every block is an exchange."""
        return block_tokens(self.block_bytes, self.num_rows, self.group.num_workers)

    @property
    def trains_by_blocks(self) -> bool:
        """Whether a block holds enough tokens; else training goes by tiles."""
        return self.block_tokens >= LEAST_BLOCK_TOKENS[self.group.device.type]


def sharded_cross_entropy(
    hidden: Tensor,
    target_rows: Tensor,
    weight: Tensor,
    shard: OutputShard,
    tokens_of_worker: list[int],
    label_smoothing: float = 0.0,
    weight_gradient: OwnGradient | None = None,
    weight_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of every worker's tokens over the whole vocabulary.

    With smoothing ε a token's loss is (1 - ε) · -log p(target) + ε · mean over the vocabulary of
    -log p, PyTorch's definition (Szegedy et al. 2016, arXiv 1512.00567).

    Args:
        hidden: [n, D] decoder outputs of this worker's tokens; n may be 0.
        target_rows: [n] row numbers of the right answers.
        weight: [R, D] the output layer's rows of this worker's shard; R may be 0. Of any type.
        shard: where those rows lie.
        tokens_of_worker: n of every worker.
        label_smoothing: ε.
        weight_gradient: takes ``weight_scale`` times d loss / d ``weight`` at once, whether
            a backward follows or not; None: it is not wanted.
        weight_scale: see there.

    Returns:
        Two float32 scalars, the same on every worker: the sum over all workers' tokens of the
        smoothed loss, with a gradient to ``hidden``, and of -log p(target).

    Collective.
    """
    smoothed, nll = _ShardedCrossEntropy.apply(
        hidden, weight.detach(), target_rows, shard, tokens_of_worker, label_smoothing,
        weight_gradient, weight_scale,
    )  # fmt: skip
    return smoothed, nll


class _ShardedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one forward pass; backward only scales that of the hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target_rows: Tensor,
        shard: OutputShard,
        tokens_of_worker: list[int],
        label_smoothing: float,
        weight_gradient: OwnGradient | None,
        weight_scale: float,
    ) -> tuple[Tensor, Tensor]:
        want_gradient = ctx.needs_input_grad[0] or weight_gradient is not None
        tokens = _Tokens(
            gather_rows(hidden.detach(), tokens_of_worker, shard.group).to(shard.dtype),
            gather_rows(target_rows, tokens_of_worker, shard.group) - shard.first_row,
            weight,
            shard,
            label_smoothing,
            weight_scale,
        )
        into: Tensor | None = None
        if weight_gradient is not None:
            into = tokens.begin_weight_gradient(weight_gradient)
        if want_gradient and shard.trains_by_blocks:
            smoothed, nll, grad_hidden = tokens.in_one_pass(into)
        else:
            smoothed, nll, log_z = tokens.loss_by_tiles()
            if want_gradient:
                grad_hidden = tokens.gradients_by_tiles(log_z, into)
        if want_gradient:
            grad_hidden -= tokens.smoothing_share * tokens.summed_rows
            own_grad_hidden = sum_and_scatter_rows(grad_hidden, tokens_of_worker, shard.group)
            ctx.save_for_backward(own_grad_hidden.to(hidden.dtype))
        ctx.mark_non_differentiable(nll)
        return smoothed, nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad_hidden,) = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], *[None] * 7


@dataclass
class _Tokens:
    """All workers' tokens at this worker's rows.

    Attributes:
        hidden: [N, D] in the type of the products' operands.
        index: [N] row of the right answer, counted from this shard's first.
        weight: [R, D].
        weight_scale: what the weights' gradient is multiplied by.
        summed_rows: [D] for label smoothing: times a hidden state the sum of all logits of its
            token, without a pass over the logits; zeros without smoothing.
    """

    hidden: Tensor
    index: Tensor
    weight: Tensor
    shard: OutputShard
    smoothing: float
    weight_scale: float

    def __post_init__(self) -> None:
        self.summed_rows = torch.zeros(self.weight.shape[1], device=self.weight.device)
        if self.smoothing:
            for rows in self.weight.split(SUMMED_ROWS):  # narrow ones are never copied whole
                self.summed_rows += rows.sum(0, dtype=torch.float32)

    @property
    def smoothing_share(self) -> float:
        """ε / V: what smoothing takes from d loss / d logits of every word."""
        return self.smoothing / self.shard.num_rows

    def begin_weight_gradient(self, gradient: OwnGradient) -> Tensor:
        """Put the part of smoothing, the same for every word, where the rest is added: [R, D]."""
        if not self.smoothing:
            return gradient.begin_adding()
        share = self.weight_scale * self.smoothing_share
        return gradient.begin_adding(self.hidden.sum(0, dtype=torch.float32) * -share)

    def in_one_pass(self, grad_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Smoothed loss, -log p, and this shard's part of the gradient of the hidden states, both
        gradients but for smoothing; the weights' is added to ``grad_weight``.

        Collective, once per block of tokens.
        """
        weight = self.weight
        if lies_in_host_memory(weight):  # every block reads it
            weight = weight.to(self.shard.dtype, copy=True)
        num_tokens = min(self.shard.block_tokens, max(1, self.hidden.shape[0]))
        blocks = LogitBlocks(weight, num_tokens, self.shard.dtype)
        grad_hidden = torch.empty_like(self.hidden, dtype=torch.float32)
        smoothed = torch.zeros((), device=self.hidden.device)
        nll = torch.zeros((), device=self.hidden.device)
        for start in range(0, self.hidden.shape[0], blocks.num_tokens):
            block = slice(start, start + blocks.num_tokens)
            h, index = self.hidden[block], self.index[block]
            logits = blocks.logits(h)
            targets = Picked(index, self.weight.shape[0])
            target_logit = targets.read(logits)
            maximum, total = exponentials(logits)
            losses, log_z = self._losses(h, maximum, total, target_logit)
            smoothed, nll = smoothed + losses[0], nll + losses[1]
            # d loss / d logits = p - (1 - ε) onehot - ε / V; the last term, the same for every
            # word, is added afterwards without touching the block.
            grad = logits.mul_((maximum - log_z).exp().unsqueeze(1))
            targets.add(grad, self.smoothing - 1)
            blocks.add_gradients(grad, h, grad_hidden[block], grad_weight, self.weight_scale)
        return smoothed, nll, grad_hidden

    def loss_by_tiles(self) -> tuple[Tensor, Tensor, Tensor]:
        """Smoothed loss, -log p, and the normaliser log Z [N]. Collective."""
        tiles = LogitTiles(self.hidden, self.weight, self.shard.block_bytes)
        (smoothed, nll), log_z = self._losses(self.hidden, *tiles.statistics(self.index))
        return smoothed, nll, log_z

    def gradients_by_tiles(self, log_z: Tensor, grad_weight: Tensor | None) -> Tensor:
        """As `in_one_pass` gives them. Not collective."""
        tiles = LogitTiles(self.hidden, self.weight, self.shard.block_bytes)
        return tiles.gradients(
            self.index, log_z, 1 - self.smoothing, grad_weight, self.weight_scale
        )

    def _losses(
        self, hidden: Tensor, maximum: Tensor, total: Tensor, target_logit: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Sums over tokens of smoothed loss and -log p, and log Z [n], from what this shard has
        found. Collective.
        """
        stats = torch.stack([maximum, total, target_logit, hidden.float() @ self.summed_rows])
        stats = stack_over_workers(stats, self.shard.group)
        log_z = log_normaliser(stats[:, 0], stats[:, 1])
        nll = log_z - stats[:, 2].sum(0)
        mean_nll = log_z - stats[:, 3].sum(0) / self.shard.num_rows  # over the vocabulary
        smoothed = (1 - self.smoothing) * nll + self.smoothing * mean_nll
        return (smoothed.sum(), nll.sum()), log_z

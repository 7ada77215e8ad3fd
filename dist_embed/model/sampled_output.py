"""The sampled output layer: a token's word against shared negatives instead of the vocabulary.

The normaliser Z = Σ exp(s_j) over the vocabulary is estimated by Ẑ = exp(s_t) + Σ exp(s_j) / π_j
over the drawn j ≠ t, with π_j the probability that j is drawn (Horvitz and Thompson 1952). Ẑ is
unbiased; -log Ẑ and its gradient approach the exact ones as the number of samples grows, and equal
them where every word is drawn. This is importance sampling as of Bengio and Senécal 2008, with the
target counted once and for certain as in Rawat et al. 2019 (arXiv 1907.10747); why not the other
usual form, which also divides the target by its π, is in docs/decisions/0009-sampled-softmax.md.
Where right answers of the worker's other sentences serve as well, π_j is the probability that j is
in either set (`batch_negatives.py`); the sum of logits that label smoothing needs goes on being
estimated by those that were drawn.

A step costs what its tokens and samples cost, whatever V. Nothing here talks to other workers: the
rows have come with the step's one lookup.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dist_embed.model.batch_negatives import BatchNegatives
from dist_embed.model.logit_blocks import LogitBlocks, Picked
from dist_embed.model.sampler import Negatives


def sampled_cross_entropy(
    hidden: Tensor,
    target_vectors: Tensor,
    negative_vectors: Tensor,
    targets: Tensor,
    negatives: Negatives,
    *,
    num_words: int,
    block_bytes: int,
    dtype: torch.dtype = torch.float32,
    label_smoothing: float = 0.0,
    micro: int = 0,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of this worker's tokens, estimated from samples.

    With smoothing ε a token's loss is (1 - ε) · -log p(target) + ε · the mean over the vocabulary
    of -log p, as in the exact layer. That mean's sum of logits is estimated like Z, without bias:
    s_t + Σ s_j / π_j.

    Args:
        hidden: [n, D] decoder outputs of this worker's tokens; n may be 0.
        target_vectors: [n, D] output rows of the right answers.
        negative_vectors: [C, D] output rows of the negatives: of S samples, then of right answers
            of the worker where they serve too (`BatchNegatives`).
        targets: [n] ids of the right answers; where one is among the negatives it counts once.
        negatives: the negatives.
        num_words: V.
        block_bytes: upper bound for one block of float32 logits.
        dtype: type of the matrix products' operands; sums are always float32.
        label_smoothing: ε.
        micro: number of the micro-batch in its step.

    Returns:
        Two float32 scalars, sums over this worker's tokens: of the smoothed loss, with gradients to
        the three matrices, and of -log p(target). Not collective.
    """
    smoothed, nll = _SampledCrossEntropy.apply(
        hidden, target_vectors, negative_vectors, targets, negatives, micro,
        label_smoothing, num_words, block_bytes, dtype,
    )  # fmt: skip
    return smoothed, nll


class _SampledCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one forward pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        target_vectors: Tensor,
        negative_vectors: Tensor,
        targets: Tensor,
        negatives: Negatives,
        micro: int,
        smoothing: float,
        num_words: int,
        block_bytes: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        hidden, answers = hidden.detach(), target_vectors.detach()
        vectors = negative_vectors.detach()
        num_tokens = max(1, block_bytes // (4 * max(1, vectors.shape[0])))
        blocks = LogitBlocks(vectors, min(num_tokens, max(1, hidden.shape[0])), dtype)
        operand = hidden.to(dtype)
        target_logit = (hidden * answers).sum(1)
        hits, log_inclusion = negatives.place_of(targets), negatives.log_inclusion
        num_drawn = negatives.ids.numel()
        # Σ s_j / π_j of all samples, for label smoothing, without a pass over the logits; the
        # sample that is the token's own target is taken out again below.
        inverse = negatives.inverse
        weighted = inverse @ vectors
        share = smoothing / num_words
        nothing = torch.full((), float("-inf"), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_negatives = torch.zeros_like(vectors)
        grad_target_logit = torch.empty_like(target_logit)
        smoothed = torch.zeros((), device=hidden.device)
        nll = torch.zeros((), device=hidden.device)
        for start in range(0, hidden.shape[0], blocks.num_tokens):
            block = slice(start, start + blocks.num_tokens)
            h, s_t = operand[block], target_logit[block]
            logits = blocks.logits(h)
            own = Picked(hits[block], logits.shape[1])
            own_inverse = inverse[hits[block].clamp(min=0)]
            sum_of_logits = s_t + hidden[block] @ weighted - own.read(logits) * own_inverse
            logits -= log_inclusion
            if isinstance(negatives, BatchNegatives):
                hidden_ones = negatives.hidden_from(micro, block)
                logits[:, num_drawn:].masked_fill_(hidden_ones, float("-inf"))
            own.put(logits, nothing)
            maximum = torch.maximum(logits.amax(1), s_t)
            total = logits.sub_(maximum.unsqueeze(1)).exp_().sum(1) + (s_t - maximum).exp()
            log_z = maximum + total.log()
            block_nll = log_z - s_t
            nll += block_nll.sum()
            smoothed += (
                (1 - smoothing) * block_nll + smoothing * (log_z - sum_of_logits / num_words)
            ).sum()
            # d loss / d s_j = p_j - (ε / V) / π_j, the second part added below for all tokens.
            grad = logits.mul_((maximum - log_z).exp().unsqueeze(1))
            own.put(grad, share * own_inverse)
            blocks.add_gradients(grad, h, grad_hidden[block], grad_negatives)
            grad_target_logit[block] = (s_t - log_z).exp() - (1 - smoothing) - share
        if share:
            grad_hidden -= share * weighted
            grad_negatives -= share * torch.outer(inverse, hidden.sum(0))
        grad_hidden += grad_target_logit.unsqueeze(1) * answers
        grad_answers = grad_target_logit.unsqueeze(1) * hidden
        ctx.save_for_backward(grad_hidden, grad_answers, grad_negatives)
        ctx.mark_non_differentiable(nll)
        return smoothed, nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return *(grad * grad_outputs[0] for grad in ctx.saved_tensors), *[None] * 7

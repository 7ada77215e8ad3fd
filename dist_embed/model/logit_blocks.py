"""Matrix products of the output layers, block by block, and sums of exponentials over shards."""

from __future__ import annotations

import torch
from torch import Tensor

# Of a narrow product that is added to float32: a part of the weights' gradient at a time.
PRODUCT_ROWS = 16384


class LogitBlocks:
    """Logits of one block of tokens after the other, in one buffer that is used again.

    Args:
        weight: [R, D] rows of the output layer.
        num_tokens: tokens per block.
        dtype: type of the matrix products' operands; the logits are float32.
    """

    def __init__(self, weight: Tensor, num_tokens: int, dtype: torch.dtype) -> None:
        self.num_tokens = num_tokens
        self._operand = weight.to(dtype)
        self._buffer = torch.empty(num_tokens * weight.shape[0], device=weight.device)
        self._narrow = (
            None if dtype == torch.float32 else torch.empty_like(self._buffer, dtype=dtype)
        )

    def change_rows(self, weight: Tensor) -> None:
        """Go on with other rows [R, D], no more than the first ones, in the same buffer."""
        self._operand = weight.to(self._operand.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[b, D] to [b, R] float32, valid until the next call."""
        rounded = None if self._narrow is None else self._part_of(self._narrow, hidden)
        part = self._part_of(self._buffer, hidden)
        return multiply(hidden, self._operand.t(), part, rounded)

    def _part_of(self, buffer: Tensor, hidden: Tensor) -> Tensor:
        size = (hidden.shape[0], self._operand.shape[0])
        return buffer[: size[0] * size[1]].view(size)

    def add_gradients(
        self,
        grad: Tensor,
        hidden: Tensor,
        grad_hidden: Tensor,
        grad_weight: Tensor | None,
        weight_scale: float = 1.0,
    ) -> None:
        """From d loss / d logits [b, R]: set ``grad_hidden`` [b, D], add ``weight_scale`` times the
        weights' to ``grad_weight`` [R, D], unless that is None.
        """
        if self._narrow is not None:
            grad = self._part_of(self._narrow, hidden).copy_(grad)
        multiply(grad, self._operand, grad_hidden)
        if grad_weight is not None:
            add_product(grad.t(), hidden, grad_weight, weight_scale)


def multiply(a: Tensor, b: Tensor, out: Tensor, rounded: Tensor | None = None) -> Tensor:
    """``out`` := a · b, float32 whatever the type of ``a`` and ``b``; returns it.

    CUDA gives the sums of narrow products in float32. On the CPU they are rounded to their type
    first, into ``rounded`` where it is given.
    """
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if out.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(a, b, out=rounded))


def add_product(a: Tensor, b: Tensor, to: Tensor, scale: float) -> None:
    """``to`` += scale · a · b; types and rounding as in `multiply`."""
    if a.dtype == to.dtype:
        to.addmm_(a, b, alpha=scale)
    elif to.is_cuda:
        torch.addmm(to, a, b, out_dtype=to.dtype, alpha=scale, out=to)
    else:
        for first in range(0, len(to), PRODUCT_ROWS):
            rows = slice(first, first + PRODUCT_ROWS)
            to[rows].add_(a[rows] @ b, alpha=scale)


class Picked:
    """One logit of some rows of a block: read and changed without asking which rows have one.

    A GPU's host would wait for that answer.

    Args:
        index: [b] which of ``num_rows`` logits; outside of these none.
        num_rows: may be 0.
    """

    def __init__(self, index: Tensor, num_rows: int) -> None:
        self.here = (index >= 0) & (index < num_rows)
        self._place = index.clamp(0, max(0, num_rows - 1)).unsqueeze(1)

    def read(self, logits: Tensor) -> Tensor:
        """Of [b, num_rows]: [b], 0 where none is picked."""
        if not logits.shape[1]:
            return logits.new_zeros(logits.shape[0])
        return torch.where(self.here, logits.gather(1, self._place).squeeze(1), 0.0)

    def add(self, logits: Tensor, value: float) -> None:
        """Add ``value`` to each picked one."""
        if logits.shape[1]:
            logits.scatter_add_(1, self._place, torch.where(self.here, value, 0.0).unsqueeze(1))

    def put(self, logits: Tensor, value: Tensor) -> None:
        """Write ``value``, [b] or [], over each picked one."""
        if logits.shape[1]:
            old = logits.gather(1, self._place)
            here = self.here.unsqueeze(1)
            logits.scatter_(1, self._place, torch.where(here, value.unsqueeze(-1), old))


def exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits [b, R] by exp(logits - their maximum); returns maximum and sum, each [b]."""
    if not logits.shape[1]:  # a worker without rows
        nothing = logits.new_zeros(logits.shape[0])
        return nothing.fill_(float("-inf")), torch.zeros_like(nothing)
    maximum = logits.amax(1)
    return maximum, logits.sub_(maximum.unsqueeze(1)).exp_().sum(1)


def log_normaliser(maximum: Tensor, total: Tensor) -> Tensor:
    """Log Σ exp(logit) over all shards from each shard's maximum and sum [W, b]: [b]."""
    highest = maximum.amax(0)
    return highest + ((maximum - highest).exp() * total).sum(0).log()

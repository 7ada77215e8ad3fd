"""Rows looked up and updated on the CPU: what FBGEMM's kernels compute, in less time.

FBGEMM's backward on the CPU, of lookups that are not pooled, collects the gradient of every row in
a vector of its own, found by a hash map. A few operations of PyTorch do the same in less than half
the time; see docs/decisions/0015-ids-ahead-and-updates-on-the-cpu.md. The tables and the
optimizer's state stay FBGEMM's, so that nothing else knows of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

# Of a table's rows, all different: weight [R, D], the optimizer's state [R] or [R, D] or none, the
# rows' numbers [n], their gradients [n, D], learning rate, ε.
Update = Callable[[Tensor, list[Tensor], Tensor, Tensor, float, float], None]


def rowwise_adagrad(
    weight: Tensor, states: list[Tensor], rows: Tensor, gradient: Tensor, rate: float, eps: float
) -> None:
    """Adagrad with one sum for a row, of its gradient's mean square."""
    (sums,) = states
    square = torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1])
    total = square.add_(sums.index_select(0, rows))
    sums.index_copy_(0, rows, total)
    factor = -rate / (total.sqrt() + eps)
    weight.index_add_(0, rows, gradient * factor.unsqueeze(1))


def adagrad(
    weight: Tensor, states: list[Tensor], rows: Tensor, gradient: Tensor, rate: float, eps: float
) -> None:
    """Adagrad (Duchi et al. 2011): a sum for each value."""
    (sums,) = states
    total = gradient.square().add_(sums.index_select(0, rows))
    sums.index_copy_(0, rows, total)
    weight.index_add_(0, rows, gradient / total.sqrt_().add_(eps), alpha=-rate)


def sgd(
    weight: Tensor, states: list[Tensor], rows: Tensor, gradient: Tensor, rate: float, eps: float
) -> None:
    """Gradient descent without state."""
    del states, eps
    weight.index_add_(0, rows, gradient, alpha=-rate)


UPDATES: dict[EmbOptimType, Update] = {
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: rowwise_adagrad,
    EmbOptimType.EXACT_ADAGRAD: adagrad,
    EmbOptimType.EXACT_SGD: sgd,
}


class CpuRows:
    """Takes the place of a kernel's forward.

    Args:
        kernel: whose float32 tables of one width, state and learning rate are used.
        width: D, without padding; None: there is none.
    """

    def __init__(
        self, kernel: SplitTableBatchedEmbeddingBagsCodegen, width: int | None = None
    ) -> None:
        self._kernel = kernel
        self._update = UPDATES[kernel.optimizer]
        self._tables: list[Tensor] = kernel.split_embedding_weights()
        stateless = kernel.optimizer == EmbOptimType.EXACT_SGD
        states = [[] for _ in self._tables] if stateless else kernel.split_optimizer_states()
        self._width = self._tables[0].shape[1] if width is None else width
        self._states: list[list[Tensor]] = [
            [state_without_padding(state, table, self._width) for state in of_table]
            for of_table, table in zip(states, self._tables, strict=True)
        ]
        # Rows are no autograd leaves here; something must ask for the backward that updates them.
        self._anchor = torch.empty(0, requires_grad=True)

    def __call__(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """The rows of every feature, one after the other: [N, D with padding]. Not collective.

        Raises IndexError for a row that is not in its table.

        Args:
            indices: [N] rows of the features' tables.
            offsets: [F · B + 1], as of a `KeyedJaggedTensor`.
        """
        features: list[int] = self._kernel.feature_table_map
        ends = offsets.view(-1)[:: (offsets.numel() - 1) // len(features)].tolist()
        parts = [
            (table, indices[begin:end])
            for table, begin, end in zip(features, ends[:-1], ends[1:], strict=True)
        ]
        rows: Tensor = _Rows.apply(self._anchor, self, parts)
        return rows

    def take(self, parts: list[tuple[int, Tensor]]) -> Tensor:
        """The rows of each part of (table, rows). Not collective."""
        counts = [rows.numel() for _, rows in parts]
        taken = self._tables[0].new_empty(sum(counts), self._tables[0].shape[1])
        for (table, rows), into in zip(parts, taken.split(counts), strict=True):
            try:
                torch.index_select(self._tables[table], 0, rows, out=into)
            except IndexError:
                count = self._tables[table].shape[0]
                raise no_such_row(f"table {table} of a kernel", rows, count) from None
        return taken

    def update(self, parts: list[tuple[int, Tensor]], gradient: Tensor) -> None:
        """One step of the optimizer with the sum of each row's gradients. Not collective.

        Args:
            parts: as they were taken.
            gradient: [N, D with padding] of what was taken.
        """
        gradient = gradient[:, : self._width]
        rate, eps = self._kernel.get_learning_rate(), self._kernel.optimizer_args.eps
        gradients = gradient.split([rows.numel() for _, rows in parts])
        for number, (weight, states) in enumerate(zip(self._tables, self._states, strict=True)):
            own = [place for place, (table, _) in enumerate(parts) if table == number]
            rows = torch.cat([parts[place][1] for place in own])
            if not rows.numel():
                continue
            distinct, place_of = rows.unique(return_inverse=True)
            summed = gradient.new_zeros(distinct.numel(), gradient.shape[1])
            places = place_of.split([parts[place][1].numel() for place in own])
            for place, into in zip(own, places, strict=True):
                summed.index_add_(0, into, gradients[place])
            self._update(weight[:, : self._width], states, distinct, summed, rate, eps)


def state_without_padding(state: Tensor, weight: Tensor, width: int) -> Tensor:
    """What FBGEMM keeps of a table's rows: [R] as it is, or [R, ``width``] of a value each."""
    of_rows = state.numel() == len(weight)
    return state.view(-1) if of_rows else state.view_as(weight)[:, :width]


def no_such_row(table: str, rows: Tensor, count: int) -> IndexError:
    """The error that names the first of ``rows`` that a shard of ``count`` rows has not."""
    wrong = rows[(rows < 0) | (rows >= count)]
    return IndexError(
        f"{table}: row {int(wrong[0])} of its shard is not there; allowed are 0 to {count - 1}"
    )


class _Rows(torch.autograd.Function):
    """Forward takes rows; backward updates them."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, kernel: CpuRows, parts: list[tuple[int, Tensor]]
    ) -> Tensor:
        ctx.kernel, ctx.parts = kernel, parts
        return kernel.take(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        ctx.kernel.update(ctx.parts, grad_outputs[0])
        return None, None, None

"""All rows of a worker's shard of one table, read and trained where they lie.

The exact output layer reads every row of the own shard and trains every one, in every step. These
rows have no way to go: the layer reads the table itself and sums up its gradient in one buffer,
which is kept from step to step. Words are looked up in that table through TorchRec as in all; what
arrives of their gradients at the rows' owner is added to the buffer, and one dense update follows
(docs/decisions/0017-own-rows-stay.md). The same on the CPU and on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from dist_embed.embedding.cpu_rows import no_such_row, state_without_padding

LARGEST = 65504.0  # of float16
# Rows are updated by parts, so that what is computed on the way takes little memory: on the CPU it
# stays in a core's cache, on CUDA a part is large enough to keep the device busy.
PART_BYTES = {"cpu": 2**20, "cuda": 2**24}


@dataclass(frozen=True)
class Constants:
    """What an update needs beside rows, state and gradient; ``step`` counts from 1."""

    rate: float
    eps: float
    beta1: float
    beta2: float
    step: int


# Of all rows of a part: weight [r, D] float32, the optimizer's state, [r] or [r, D] or none, and
# the gradient [r, D]. What FBGEMM's kernels of the same names compute.
Update = Callable[[Tensor, list[Tensor], Tensor, Constants], None]


def rowwise_adagrad(weight: Tensor, states: list[Tensor], gradient: Tensor, c: Constants) -> None:
    """Adagrad with one sum for a row, of its gradient's mean square."""
    (sums,) = states
    sums += torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1])
    weight.addcmul_(gradient, (-c.rate / (sums.sqrt() + c.eps)).unsqueeze(1))


def adagrad(weight: Tensor, states: list[Tensor], gradient: Tensor, c: Constants) -> None:
    """Adagrad (Duchi et al. 2011): a sum for each value."""
    (sums,) = states
    sums.addcmul_(gradient, gradient)
    weight.addcdiv_(gradient, sums.sqrt().add_(c.eps), value=-c.rate)


def sgd(weight: Tensor, states: list[Tensor], gradient: Tensor, c: Constants) -> None:
    """Gradient descent without state."""
    del states
    weight.add_(gradient, alpha=-c.rate)


def adam(weight: Tensor, states: list[Tensor], gradient: Tensor, c: Constants) -> None:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with bias correction."""
    mean, square = states
    mean.lerp_(gradient, 1 - c.beta1)
    square.mul_(c.beta2).addcmul_(gradient, gradient, value=1 - c.beta2)
    root = (square / (1 - c.beta2**c.step)).sqrt_().add_(c.eps)
    weight.addcdiv_(mean, root, value=-c.rate / (1 - c.beta1**c.step))


UPDATES: dict[EmbOptimType, Update] = {
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: rowwise_adagrad,
    EmbOptimType.EXACT_ADAGRAD: adagrad,
    EmbOptimType.EXACT_SGD: sgd,
    EmbOptimType.ADAM: adam,
}


class OwnGradient:
    """The gradient of all rows of the own shard, summed over a step's micro-batches.

    Attributes:
        values: [R, D] float32, a buffer that is used again; holds nothing before `begin_adding`.
        begun: whether something has been added in this step.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.begun = False

    def begin_adding(self, every_row: Tensor | None = None) -> Tensor:
        """Add ``every_row`` [D], if any, to the gradient of each row; returns ``values``, to which
        the rest of a micro-batch's gradient is added.

        What the step before has left is cleared first.
        """
        if self.begun:
            if every_row is not None:
                self.values += every_row
        else:
            self.values[:] = 0 if every_row is None else every_row
            self.begun = True
        return self.values

    def summed(self) -> Tensor:
        """What was added in this step: ``values``, which become zeros where nothing was."""
        return self.values if self.begun else self.begin_adding()


@dataclass(frozen=True)
class OwnRows:
    """The rows of the own shard as one step has them.

    Attributes:
        weight: [R, D] live view of the table, in the type of its rows.
        gradient: where d loss / d weight is summed up, of all workers' tokens and of the loss
            itself, not of W times the loss, as on the leaves. None where it is not trained.
    """

    weight: Tensor
    gradient: OwnGradient | None


class OwnRowsKernel:
    """Takes the place of the forward of a kernel with one table.

    Args:
        kernel: whose table, state and learning rate are used. It has no cache.
        num_rows: R, logical rows of the own shard.
        width: D, without padding; None: there is none.

    Nothing here is collective.
    """

    def __init__(
        self,
        kernel: SplitTableBatchedEmbeddingBagsCodegen,
        num_rows: int,
        width: int | None = None,
    ) -> None:
        (weight,) = kernel.split_embedding_weights()  # a kernel with more tables raises ValueError
        stateless = kernel.optimizer == EmbOptimType.EXACT_SGD
        states = [] if stateless else kernel.split_optimizer_states()[0]
        self._rows = weight[:num_rows]
        self.weight = self._rows[:, :width]
        self.step = 1  # of which the next update is, for Adam's bias correction
        self._states = [
            state_without_padding(state, weight, self.weight.shape[1])[:num_rows]
            for state in states
        ]
        self._kernel = kernel
        self._update = UPDATES[kernel.optimizer]
        self._values: Tensor | None = None  # made for the first step that trains
        # Rows are no autograd leaves here; something must ask for the backward that updates them.
        self._anchor = torch.empty(0, device=weight.device, requires_grad=True)
        self._gradient: OwnGradient | None = None

    def begin_step(self, *, trained: bool) -> OwnRows:
        """The rows for one step; ``trained``: whether its backward is to change them."""
        self._gradient = None
        if trained:
            if self._values is None:
                self._values = torch.empty_like(self.weight, dtype=torch.float32)
            self._gradient = OwnGradient(self._values)
        return OwnRows(self.weight, self._gradient)

    def __call__(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """The rows ``indices`` [N] of the own shard: [N, D with padding] float32.

        In their backward all rows are updated, with the gradient of `begin_step` and theirs.
        """
        del offsets  # one table: its rows as they come
        rows: Tensor = _LookedUp.apply(self._anchor, self, indices, self._gradient)
        return rows

    def take(self, rows: Tensor) -> Tensor:
        """The rows, float32: [N, D with padding]. Raises IndexError for one that is not there (on
        the CPU).
        """
        try:
            return self._rows.index_select(0, rows).float()
        except IndexError:
            raise no_such_row("the output layer's table", rows, len(self.weight)) from None

    def update(self, own: OwnGradient | None, rows: Tensor, gradient: Tensor) -> None:
        """One step of the optimizer for every row of the shard.

        Args:
            own: the gradient of `begin_step`; None: the table is frozen, nothing happens.
            rows: [N] that were looked up, repeated or not.
            gradient: [N, D with padding] their gradients, to be added.

        Raises:
            RuntimeError: another step has begun since: the buffer is its by now.
        """
        if own is None:
            return
        if own is not self._gradient:
            raise RuntimeError("rows were fetched for training again before these were updated")
        summed = own.summed()
        summed.index_add_(0, rows, gradient[:, : summed.shape[1]])
        arguments = self._kernel.optimizer_args
        constants = Constants(
            self._kernel.get_learning_rate(), arguments.eps, arguments.beta1, arguments.beta2,
            self.step,
        )  # fmt: skip
        part = max(1, PART_BYTES[summed.device.type] // (4 * summed.shape[1]))
        for first in range(0, len(summed), part):
            chosen = slice(first, first + part)
            self._update_part(
                self.weight[chosen], [s[chosen] for s in self._states], summed[chosen], constants
            )

    def _update_part(
        self, weight: Tensor, states: list[Tensor], gradient: Tensor, constants: Constants
    ) -> None:
        if weight.dtype == torch.float32:
            self._update(weight, states, gradient, constants)
            return
        wide = weight.float()
        self._update(wide, states, gradient, constants)
        weight.copy_(round_stochastically(wide))


def round_stochastically(values: Tensor) -> Tensor:
    """float32 to float16, up or down with the chances that make the mean right.

    As FBGEMM does it: 13 random bits are added below float16's last one, then they are cut off;
    finite values stay finite. Those below 6·10⁻⁵, where float16 has fewer bits, are rounded to the
    nearest afterwards (FBGEMM: towards zero). What is not finite stays as it is.
    """
    bits = values.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 13)
    rounded = ((bits + noise) & -(1 << 13)).view(torch.float32).clamp_(-LARGEST, LARGEST)
    return torch.where(values.isfinite(), rounded, values).half()


class _LookedUp(torch.autograd.Function):
    """Forward takes rows; backward updates the shard."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, kernel: OwnRowsKernel, rows: Tensor, own: OwnGradient | None
    ) -> Tensor:
        ctx.kernel, ctx.rows, ctx.own = kernel, rows, own
        return kernel.take(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        ctx.kernel.update(ctx.own, ctx.rows, grad_outputs[0])
        return None, None, None, None

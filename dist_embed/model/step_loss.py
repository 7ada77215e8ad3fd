"""The loss of one step, exact or sampled, once `dist_embed.model.output_layer` has started it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dist_embed.arguments import whole_number
from dist_embed.embedding.own_rows import OwnRows
from dist_embed.embedding.step_rows import StepRows
from dist_embed.errors import UserError
from dist_embed.model.batch_negatives import BatchNegatives
from dist_embed.model.loss_inputs import LossInputs
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import Negatives
from dist_embed.parallel.collectives import (
    stack_over_workers,
    start_gather_rows,
    start_sum_and_scatter_rows,
)
from dist_embed.parallel.group import Group


class StepLoss(Protocol):
    """The loss of one step, micro-batch by micro-batch."""

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sums over tokens (see ``OutputLayer.counts_own_tokens``) of the smoothed loss and of
        -log p; the gradients are those of this worker's tokens and rows. Collective.

        Args:
            hidden: [n, D] of this worker's tokens, n may be 0; computed with as float32.
            micro: number of the micro-batch; each comes once, in order.
            targets: [n] ids of its right answers.
            tokens_of_worker: n of every worker.
            label_smoothing: ε.

        Raises UserError, on the worker that it concerns: one of these cannot be.
        """

    def finish(self) -> None:
        """After the backward of the last loss: all gradients are on the step's rows. Collective.

        Raises UserError: there was no such backward, or it has been called already.
        """


class ExactLoss:
    """See `StepLoss` and `sharded_cross_entropy`, which adds to the gradient of own rows itself."""

    def __init__(
        self,
        rows_of: Callable[[Tensor], Tensor],
        shard: OutputShard,
        own: OwnRows,
        weight_scale: float,
        inputs: LossInputs,
        agreed: bool,
    ) -> None:
        self._rows_of, self._shard = rows_of, shard
        self._own, self._weight_scale = own, weight_scale
        self._inputs, self._agreed = inputs, agreed

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self._shard.group.require_joined()
        hidden, targets, tokens_of_worker = self._inputs.take(
            hidden, micro, targets, tokens_of_worker, label_smoothing
        )
        if not self._agreed:
            _check_equal(tokens_of_worker, self._shard.group)
        with _no_autocast(hidden):
            return sharded_cross_entropy(
                hidden, self._rows_of(targets), self._own.weight, self._shard, tokens_of_worker,
                label_smoothing, self._own.gradient, self._weight_scale,
            )  # fmt: skip

    def finish(self) -> None:
        self._inputs.require_all()


class SampledLoss:
    """See `StepLoss` and `sampled_cross_entropy`; the last backward is collective too."""

    def __init__(
        self,
        feature: str,
        shard: OutputShard,
        rows: StepRows,
        negatives: Negatives,
        micro_batches: int,
    ) -> None:
        self._feature = feature
        self._shard, self._rows, self._negatives = shard, rows, negatives
        micro_batches = whole_number("micro_batches", micro_batches, 1)
        self._last = micro_batches - 1
        self._drawn, self._in_batch = micro_batches, micro_batches + 1  # among the step's `words`
        parts = negatives.ids.tensor_split(shard.group.num_workers)
        self._negatives_of_worker = [part.numel() for part in parts]
        needed = micro_batches + (2 if isinstance(negatives, BatchNegatives) else 1)
        if rows.count(feature) < needed:
            raise UserError(
                f"rows: {rows.count(feature)} tensors of ids were looked up as {feature!r}; "
                f"{needed} are needed, those of `words` with the targets of each micro-batch"
            )
        own = rows.vectors(feature, self._drawn).detach()
        if own.dim() != 2 or len(own) != self._negatives_of_worker[shard.group.rank]:
            raise UserError("negatives: others are given than `words` was given for the lookup")
        self._inputs = LossInputs(shard, own.shape[1], micro_batches)
        self._trained: bool | None = None  # known by the first loss
        self._finished = False
        self._arriving = start_gather_rows(own, self._negatives_of_worker, shard.group)
        self._leaving: list[Callable[[], Tensor]] = []  # one, once the gradients are on their way

    @cached_property
    def _vectors(self) -> Tensor:
        """[C, D] leaf of all negatives. The first one to ask waits for them."""
        drawn = self._arriving()
        if isinstance(self._negatives, BatchNegatives):
            in_batch = self._rows.vectors(self._feature, self._in_batch).detach()
            drawn = torch.cat([drawn, in_batch])
        return drawn.requires_grad_(bool(self._trained))

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self._shard.group.require_joined()
        hidden, targets, _ = self._inputs.take(
            hidden, micro, targets, tokens_of_worker, label_smoothing
        )
        if self._trained is None:  # inside `torch.no_grad()` it is only looked at
            self._trained = self._rows.train and torch.is_grad_enabled()
            self._rows.unfinished += self._trained
        answers = self._rows.vectors(self._feature, micro)
        if len(answers) != len(hidden):
            raise UserError(
                f"targets: {len(targets)} of micro-batch {micro}; {len(answers)} were looked up"
            )
        if micro == self._last and self._trained:
            group, leaving = self._shard.group, self._leaving
            rows_of_worker, num_drawn = self._negatives_of_worker, self._negatives.ids.numel()

            # The hook holds nothing that leads back to these vectors: a ring through PyTorch's C++,
            # which Python's collector does not see, would keep the step's rows for ever.
            def send_back(vectors: Tensor) -> None:
                assert vectors.grad is not None
                drawn = vectors.grad[:num_drawn]
                leaving.append(start_sum_and_scatter_rows(drawn, rows_of_worker, group))

            self._vectors.register_post_accumulate_grad_hook(send_back)
        with _no_autocast(hidden):
            return sampled_cross_entropy(
                hidden, answers, self._vectors, targets, self._negatives,
                num_words=self._shard.num_rows, block_bytes=self._shard.block_bytes,
                dtype=self._shard.dtype, label_smoothing=label_smoothing, micro=micro,
            )  # fmt: skip

    def finish(self) -> None:
        """Hand the sum over workers of each sample's gradient to who has looked it up."""
        self._inputs.require_all()
        if not self._trained:
            return
        if self._finished or not self._leaving:
            reason = "it has been called already" if self._finished else "call backward() first"
            raise UserError(f"finish: it follows the backward of a step's last loss once; {reason}")
        self._rows.add_gradient(self._feature, self._drawn, self._leaving[0]())
        if isinstance(self._negatives, BatchNegatives):
            assert self._vectors.grad is not None
            own = self._vectors.grad[self._negatives.ids.numel() :]
            self._rows.add_gradient(self._feature, self._in_batch, own)
        self._finished = True
        self._rows.unfinished -= 1


def _check_equal(tokens_of_worker: list[int], group: Group) -> None:
    """Raise UserError on all workers where they have other numbers: gloo would end the process at
    the first gathering (torch 2.13, gloo's pair.cc: an exception in a thread). Collective.
    """
    own = torch.tensor(tokens_of_worker, device=group.device)
    first, *others = stack_over_workers(own, group).tolist() if group.num_workers > 1 else [[]]
    for rank, numbers in enumerate(others, start=1):
        if numbers != first:
            raise UserError(
                f"tokens_of_worker: all workers give the same; worker 0 has {first}, worker {rank} "
                f"{numbers}"
            )


def _no_autocast(hidden: Tensor) -> AbstractContextManager[None]:
    """Types are the layer's own choice, inside an autocast of the caller too."""
    return torch.autocast(hidden.device.type, enabled=False)

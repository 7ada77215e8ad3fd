"""One optimizer step in two halves: the dense part, then the tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dist_embed.data.batch import IDS
from dist_embed.data.loader import StepBatches
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import RowRequest, StepRows, WantedRows
from dist_embed.model.output_layer import OutputLayer
from dist_embed.model.sampler import Negatives
from dist_embed.observe.phases import phase, waiting_after
from dist_embed.optim.gradient_norm import table_gradient_square_sum
from dist_embed.optim.schedule import Rates
from dist_embed.parallel.collectives import start_sum_over_workers
from dist_embed.parallel.device import pinned, seed_random_draws
from dist_embed.training.settings import TrainSection

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class StepResult:
    """What a step found; the same on every worker.

    Attributes:
        loss: smoothed loss per target token.
        nll: -log p of the right token, per target token.
        tokens: target tokens of all workers.
        skipped: whether loss or gradient was not finite, and nothing was changed.
        gradient_norm: global norm before clipping; None where no clipping is asked for.
    """

    loss: float
    nll: float
    tokens: int
    skipped: bool
    gradient_norm: float | None


@dataclass(frozen=True)
class PreparedStep(StepBatches):
    """A step's batches with what `TrainStep.prepare` has made of them.

    Attributes:
        step: its number.
        wanted: the rows that it looks up.
        negatives: of the sampled output layer.
    """

    step: int
    wanted: WantedRows
    negatives: Negatives | None

    def to(self, device: torch.device) -> Self:
        """The same on ``device``, but for the ids of both inputs, for which ``wanted`` is read."""
        return self._changed(
            lambda tensor: tensor.to(device, non_blocking=True),
            self.negatives and self.negatives.to(device),
        )

    def pinned(self) -> Self:
        """The same in memory from which a GPU copies by itself, but for what `to` leaves behind."""
        return self._changed(pinned, self.negatives and self.negatives.pinned())

    def _changed(self, change: Callable[[Tensor], Tensor], negatives: Negatives | None) -> Self:
        return replace(
            self,
            batches=[batch.changed(change, but=IDS) for batch in self.batches],
            wanted=self.wanted.changed(change),
            negatives=negatives,
        )


class TrainStep:
    """Runs steps on a model and its tables.

    Args:
        model: the dense part, under DDP when there are several workers.
        lookup: the tables.
        output: the output layer.
        optimizer: of the dense part.
        settings: label smoothing, and the largest global gradient norm.
        rates: of dense part and tables; an attribute too.
        compute_dtype: type of matrix products; parameters and sums stay float32.
        seed: with step and rank, decides dropout, so that a resumed run draws the same.
    """

    def __init__(
        self,
        model: nn.Module,
        lookup: ShardedTables,
        output: OutputLayer,
        optimizer: torch.optim.Optimizer,
        settings: TrainSection,
        rates: Rates,
        *,
        compute_dtype: torch.dtype,
        seed: int,
    ) -> None:
        self._model = model
        self._lookup = lookup
        self._output = output
        self._optimizer = optimizer
        self._settings = settings
        self.rates = rates
        self._compute_dtype = compute_dtype
        self._seed = seed
        self._group = lookup.group
        self._transformer = model.module if isinstance(model, DistributedDataParallel) else model
        self._parameters = list(model.parameters())
        # What was announced, prepared, and its rows on their way.
        self._requested: tuple[StepBatches, PreparedStep, RowRequest] | None = None

    def prepare(self, step: int, work: StepBatches) -> PreparedStep:
        """What can be done before a step's turn. Not collective; made for the loader's thread.

        Args:
            step: its number, from 1.
            work: its batches, on the host or on the device.
        """
        targets = [batch.target_output for batch in work.batches]
        negatives = self._output.draw(step, targets, lambda: sentences_of_tokens(work))
        if negatives is not None:  # drawn on the host; ids are looked up where the batches are
            negatives = negatives.to(work.batches[0].source.device)
        wanted = self._lookup.wanted(
            {
                "source": [batch.source for batch in work.batches],
                "target": [batch.target_input for batch in work.batches],
                "output": self._output.words(targets, negatives),
            }
        )
        prepared = PreparedStep(
            work.batches, work.token_counts, work.after, step, wanted, negatives
        )
        return prepared.pinned() if self._group.device.type == "cuda" else prepared

    def run(self, step: int, work: StepBatches, following: StepBatches | None = None) -> StepResult:
        """Train on one step's batches. Collective.

        Args:
            step: its number, from 1.
            work: its batches on this worker's device, prepared or not.
            following: those of the next step, where they are known: their ids then travel while
                this step updates parameters and tables. Given on all workers or on none.
        """
        seed_random_draws(step_seed(self._seed, step, self._group.rank), self._group.device)
        if not self._transformer.training:  # set by a validation, below DDP
            self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        self._lookup.set_step(step)
        # Before the rows are fetched: FBGEMM's kernels take the rate with them.
        self._lookup.set_learning_rate(
            self.rates.tables.rate(step),
            {name: schedule.rate(step) for name, schedule in self.rates.own.items()},
        )
        self._lookup.freeze(self.rates.frozen(step))
        prepared, request = self._request(step, work)
        rows = self._lookup.fetch(request)
        found = self._dense_half(rows, prepared)
        with phase("gradient norm"):
            # One exchange: each waits for the slowest worker.
            summing = start_sum_over_workers(self._own_sums(rows, found), self._group)
            dense_square = torch.stack(torch._foreach_norm(self._dense_gradients())).square().sum()
        if following is not None:
            self._requested = following, *self._request(step + 1, following)
        with phase("gradient norm"):
            tables_square, loss, nll = summing()
            # Here a GPU's host waits for the results, once.
            loss_sum, nll_sum, norm = torch.stack(
                [loss, nll, (dense_square + tables_square).sqrt()]
            ).tolist()
        if self._requested:
            self._requested[2].send()  # its counts have come by then
        skipped = not (math.isfinite(norm) and math.isfinite(loss_sum))
        if not skipped:
            with phase("optimizer"):
                self._clip(rows, norm)
                for param_group in self._optimizer.param_groups:
                    param_group["lr"] = self.rates.dense.rate(step)
                self._optimizer.step()
            rows.backward(proven=True)
        return StepResult(
            loss=loss_sum / work.global_tokens,
            nll=nll_sum / work.global_tokens,
            tokens=work.global_tokens,
            skipped=skipped,
            gradient_norm=norm if self._settings.clip_norm else None,
        )

    def _request(self, step: int, work: StepBatches) -> tuple[PreparedStep, RowRequest]:
        """Ask for the rows of a step, unless the step before has done it. Collective.

        `ShardedTables.freeze` and `set_step` may follow: they count when the rows are fetched.

        Raises:
            ValueError: ``work`` was prepared as another step.
        """
        requested, self._requested = self._requested, None
        if requested is not None and requested[0] is work and requested[1].step == step:
            return requested[1:]
        if isinstance(work, PreparedStep):
            if work.step != step:
                raise ValueError(f"prepared as step {work.step}, and given as step {step}")
            prepared = work
        else:
            prepared = self.prepare(step, work).to(self._group.device)
        return prepared, self._lookup.request(prepared.wanted)

    def _dense_half(self, rows: StepRows, work: PreparedStep) -> Tensor:
        """Forward and backward of every micro-batch onto the rows and the dense part.

        Returns the sums of loss and -log p, of the tokens that the output layer counts: [2].
        """
        device = self._group.device
        sums = torch.zeros(2, device=device)
        # DDP and TorchRec both divide what comes from leaves by W; the loss is multiplied by it.
        scale = self._group.num_workers / work.global_tokens
        with phase("output"):
            step_loss = self._output.start(
                rows, work.negatives, len(work.batches), 1 / work.global_tokens, agreed=True
            )
        leaves = [table.vectors for table in rows.tables.values()]
        for micro, batch in enumerate(work.batches):
            last = micro + 1 == len(work.batches)
            with self._gradient_sync(last):
                with torch.autocast(
                    device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32
                ):
                    hidden = self._model(
                        rows.vectors("source", micro),
                        batch.source_lengths,
                        rows.vectors("target", micro),
                        batch.token_positions,
                        batch.rectangles,
                    )
                with phase("output"):
                    loss, nll = step_loss.of(
                        hidden.float(), micro, batch.target_output, work.token_counts[micro],
                        self._settings.label_smoothing,
                    )  # fmt: skip
                with phase("dense backward"), waiting_after(leaves):
                    (loss * scale).backward()
            sums += torch.stack([loss.detach(), nll])
        with phase("output"):
            step_loss.finish()
        return sums

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """DDP exchanges gradients in the last micro-batch only."""
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()

    def _own_sums(self, rows: StepRows, found: Tensor) -> Tensor:
        """This worker's part of what is summed over workers: the square of the tables' gradient,
        loss and -log p: [3]. Collective.

        Without clipping the parts of a row's gradient are not brought together: their squares tell
        only whether all are finite.
        """
        if not self._output.counts_own_tokens and not self._group.is_first:
            found = torch.zeros_like(found)  # those of all workers' tokens are counted once
        if self._settings.clip_norm:
            square = table_gradient_square_sum(rows, self._lookup)
        else:
            norms = [torch.linalg.vector_norm(gradient) for gradient in rows.gradients()]
            square = torch.stack([*norms, found.new_zeros(())]).square().sum()
        return torch.cat([square.unsqueeze(0), found])

    def _dense_gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _clip(self, rows: StepRows, norm: float) -> None:
        if not self._settings.clip_norm or norm <= self._settings.clip_norm:
            return
        factor = self._settings.clip_norm / norm
        torch._foreach_mul_([*self._dense_gradients(), *rows.gradients()], factor)


def sentences_of_tokens(work: StepBatches) -> list[Tensor]:
    """By micro-batch [n] to which of the worker's sentences in the step, from 0, each token of
    ``target_output`` belongs. Not collective.
    """
    first, found = 0, []
    for batch in work.batches:
        found.append(batch.sentence_of_token() + first)
        first += len(batch.source_lengths)
    return found


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a worker's random draws in one step; a resumed run needs no saved random state."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)

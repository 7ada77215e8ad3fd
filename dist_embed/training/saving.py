"""When a run saves, and what it looks at before it does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import TrainingState
from dist_embed.errors import UserError
from dist_embed.parallel.collectives import sum_numbers_over_workers
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.hang import at
from dist_embed.parallel.stop import stop_requested

_BLOCK = 2**20  # values that are looked at together


class Saves:
    """A run's saves: when they are due, and that they are made.

    A save that is due while another one is under way is made once that has ended, of the step that
    is done by then: training goes on meanwhile. At most one waits so. Where a worker has had no
    news of the one under way for so long that it may hang, training waits for it, see `Saver.wait`;
    it waits too where the step that it stands at is the best so far, and such ones are kept.

    Args:
        state: what is saved; its step is that of the run's start.
        saver: writes it.
        settings: when saves are due.
        best_loss: the lowest validation loss of the run's checkpoints, the same on every worker.
        before_save: raises, on some worker, where saving would be in vain.
        say: takes lines for the user.
    """

    def __init__(
        self,
        state: TrainingState,
        saver: Saver,
        settings: CheckpointSection,
        before_save: Callable[[], None],
        say: Callable[[str], None],
        *,
        best_loss: float = math.inf,
    ) -> None:
        self._state = state
        self._saver = saver
        self._settings = settings
        self._before_save = before_save
        self._say = say
        self._best_loss = best_loss
        self._best: tuple[int, float] | None = None  # its step, and the lowest before
        self._due = False
        self._is_best = False  # the step that is done: it is due, and cannot wait
        self._may_hang = False
        self._told = False  # that the one which is due waits
        self._last_step = state.step  # of the newest save, or where the run has begun
        self._went_on = time.monotonic()

    def between_steps(self) -> bool:
        """Take in a save that has ended everywhere, and worker 0's clock; returns whether any
        worker is asked to stop. Collective.
        """
        group = self._state.group
        numbers = [
            stop_requested(), self._saver.has_ended, self._saver.may_hang,
            group.is_first and self._is_due_by_clock(),
        ]  # fmt: skip
        # What follows is decided by these sums alone, so that all workers do the same.
        stops, ended, hanging, due = sum_numbers_over_workers([int(n) for n in numbers], group)
        if ended == group.num_workers:
            self._saver.conclude()
            self._look_at_best()
        self._may_hang = bool(hanging)
        self._due = self._due or bool(due)
        return bool(stops)

    def note_step(self) -> None:
        """A step is done. Not collective, but the same on every worker."""
        every = self._settings.every_steps
        if every and self._state.step % every == 0:
            self._due = True

    def note_validation(self, loss: float) -> None:
        """The step that is done has this loss: a checkpoint is due where it is the lowest so far,
        and such ones are kept. Not collective, but the same on every worker.
        """
        if self._settings.keep_best and loss < self._best_loss:
            self._best = self._state.step, self._best_loss
            self._best_loss = loss
            self._due = self._is_best = True

    def save_if_due(self) -> bool:
        """Begin to save, if that is due and no other save is under way, or not to wait for.

        Returns whether any worker was asked to stop while the best so far waited for another one:
        then it is not begun, because a run that stops saves its last step. Collective.
        """
        if not self._due:
            return False
        at(None)  # it may be waited for
        under_way = self._saver.step_under_way
        if self._is_best and under_way is not None and not self._may_hang:
            self._saver.wait()
            self._look_at_best()
            (stops,) = sum_numbers_over_workers([int(stop_requested())], self._state.group)
            if stops:
                return True
            under_way = None
        if under_way is None or self._may_hang:
            self.save()
        elif not self._told:
            self._told = True
            self._say(
                f"step {self._state.step}: a checkpoint is due, and that of step {under_way} is "
                "still under way; it is made once that has ended"
            )
        return False

    def save(self) -> None:
        """Begin to save, if all that is to be saved is finite and somewhere to go; a save that is
        under way is waited for. Collective.
        """
        self._due = self._is_best = self._told = False
        self._last_step = self._state.step
        self._saver.save(self._state, self._check)
        self._look_at_best()
        self._went_on = time.monotonic()

    def _look_at_best(self) -> None:
        """Where the save of the best so far has just ended without a checkpoint, the best is what
        it was before.
        """
        if self._best is None or self._is_best:
            return
        step, before = self._best
        if self._saver.step_under_way == step:
            return
        if self._saver.saved_step < step:
            self._best_loss = before
        self._best = None

    def _is_due_by_clock(self) -> bool:
        every = 60 * self._settings.every_minutes
        is_new = self._state.step != self._last_step
        return every > 0 and is_new and time.monotonic() - self._went_on >= every

    def _check(self) -> None:
        with all_or_none(self._state.group):
            self._before_save()
            for name, tensor in self._state.tensors.items():
                if not is_finite(tensor.data):
                    raise UserError(
                        f"step {self._state.step}: {name} holds values that are not finite; "
                        + ruined(self._saver)
                    )


def ruined(saver: Saver) -> str:
    """What is said of a model with values that are not finite, and which checkpoint there is."""
    newest = (
        f"the newest checkpoint is that of step {saver.saved_step}"
        if saver.saved_step
        else "checkpoints of earlier runs are as they were"
    )
    return (
        f"the model is of no use any more and is not saved ({newest}). Lower train.learning_rate "
        "or embedding.learning_rate, set train.clip_norm, raise embedding.eps, or use "
        "train.precision=fp32; --force, in a script force=True, goes on from there with the new "
        "values"
    )


def is_finite(values: Tensor) -> bool:
    """Whether all of them are; takes one pass and memory for a block."""
    if not values.is_floating_point():
        return True
    blocks = values.detach().reshape(-1).split(_BLOCK)
    # One look for all blocks. Times 0 a finite sum is 0, and any other NaN.
    found = torch.zeros((), device=values.device)
    for block in blocks:
        found += block.sum(dtype=torch.float32) * 0
    # A sum of large values overflows.
    return bool(found == 0) or all(bool(torch.isfinite(block).all()) for block in blocks)

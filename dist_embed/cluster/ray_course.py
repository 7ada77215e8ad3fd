"""The course of a run under Ray Train: its workers are started, and started again."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dist_embed.cluster.failure import Failures, Start, asked_to_stop, raise_failure
from dist_embed.cluster.ray_aside import POLL_SECONDS
from dist_embed.cluster.ray_fit import Fit, Mail, Surroundings
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.cluster.ray_outcome import (
    lost_room,
    may_start_again,
    untold,
    why,
)
from dist_embed.errors import RunFailed, RunStopped

# Between our finding room and Ray Train's asking for it another job may be faster, or a node go;
# not ever again.
MOST_LOST_ROOM = 10


class Course:
    """What starts workers until they have a result.

    Args:
        trainer: of so many workers, for the start of this number.
        mail: from the workers of all starts.
        around: what else they have in common.
        failures: what is outlived.
        log_folder: named in error messages.
    """

    def __init__(
        self,
        trainer: Callable[[int, int], DataParallelTrainer],
        mail: Mail,
        around: Surroundings,
        failures: Failures,
        log_folder: str,
    ) -> None:
        self._trainer = trainer
        self._mail = mail
        self._around = around
        self._failures = failures
        self._taken_away = Failures(math.inf)  # no failures, but they too are waited after
        self._lost_room = Failures(MOST_LOST_ROOM)
        self._log_folder = log_folder
        self._outlived_conflict = False
        self._next = "the workers had begun"  # what a request to stop comes before

    def run(self, workers: int) -> Any:
        """Worker 0's result, of ``workers`` at most.

        Raises what `launch_ray` does.
        """
        for number in itertools.count():
            workers = self._room(workers, again=number > 0)
            # An earlier start's save may have been published after that start had ended.
            outlives_conflict = number > 0 and not self._outlived_conflict
            start = Start(number, outlives_conflict=outlives_conflict)
            fit = self._fit(workers, start)
            outcome = fit.run()
            if start.results and not start.failures:  # it counts whatever has ended since
                result = start.results[-1]
                if fit.stopping or not (fit.paused and getattr(result, "stopped", False)):
                    return result
                _check_has_ended(fit, "have saved")
                workers, self._next = fit.paused, "the workers went on"
                continue
            start.failures += untold(start, outcome)
            if fit.was_idle:
                if start.failures:
                    self._next = _again(why(start, outcome))
                raise self._stopped()
            if start.is_final or fit.stopping or not may_start_again(outcome):
                self._raise(start, outcome)
            _check_has_ended(fit, f"have failed ({why(start, outcome)})")
            self._outlived_conflict |= start.has_conflict
            self._wait_after(fit, outcome)
        raise AssertionError  # it counts without end

    def _fit(self, workers: int, start: Start) -> Fit:
        # The first of them tells Ray's head that Ray Train is used (2.60, usage_lib.py).
        trainer = self._around.aside(lambda rest: self._trainer(workers, start.number), self._heed)
        return Fit(trainer, workers, start, self._mail, self._around)

    def _room(self, wanted: int, *, again: bool) -> int:
        """For how many workers there is room, once there is."""
        lines: deque[str] = deque()

        def heed() -> None:
            while lines:
                self._around.say(lines.popleft())
            self._heed()

        room = self._around.room
        heed()
        try:
            return self._around.aside(
                lambda rest: room.wait(wanted, lines.append, rest, again=again), heed
            )
        except NodeLost:
            raise
        except RunFailed as exc:
            raise RunFailed(f"{exc}{self._failures.beside('')}") from exc

    def _wait_after(self, fit: Fit, outcome: Exception | None) -> None:
        """Wait before another start, if there may be one."""
        start = fit.start
        reason, failures = why(start, outcome), self._failures
        if fit.was_announced and not start.has_cause:
            reason = "a node was taken away before the workers had saved"
            failures = self._taken_away
        elif lost_room(outcome):
            reason, failures = "the room was gone", self._lost_room
        seconds = failures.wait_after(reason)
        if seconds is None:
            self._raise(start, outcome)
        self._next = _again(reason)
        counted = failures.counted()
        self._around.say(f"workers are started again in {seconds:.0f} s: {reason}{counted}")
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._heed()
            time.sleep(min(left, POLL_SECONDS))
        self._around.aside(lambda rest: self._around.room.settle(start.nodes, rest), self._heed)

    def _heed(self) -> None:
        """Raises RunStopped where that is asked for while no workers run, and NodeLost."""
        self._around.node.check()
        if self._around.is_asked_to_stop():
            self._around.show(asked_to_stop())
            raise self._stopped()

    def _stopped(self) -> RunStopped:
        return RunStopped(f"stopped as asked, before {self._next}")

    def _raise(self, start: Start, outcome: Exception | None) -> NoReturn:
        reason = why(start, outcome)
        beside = self._failures.beside(reason)
        if start.has_cause or (start.failures and outcome is None):
            raise_failure(start.failures, self._log_folder, beside)
        what = f"{reason}: {outcome}" if outcome else "the workers told no result"
        raise RunFailed(f"{what}\n(worker logs: {self._log_folder}){beside}")


def _check_has_ended(fit: Fit, workers: str) -> None:
    if not fit.has_ended:
        raise RunFailed(
            f"the workers {workers}, but did not end, and hold the room of those that would go on; "
            "the same command goes on from there"
        )


def _again(reason: str) -> str:
    return f"the workers were started again ({reason})"

"""The course of a run under Ray Train: its workers are started, watched, and started again."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dist_embed.cluster.failure import (
    Attempt,
    Failures,
    asked_to_stop,
    raise_failure,
    stopped_too_late,
)
from dist_embed.cluster.ray_node import Node, NodeLost
from dist_embed.cluster.ray_outcome import may_start_again, untold, was_announced, why
from dist_embed.cluster.ray_room import Growth, Room
from dist_embed.cluster.ray_worker import MAILBOX_SECONDS
from dist_embed.errors import RunFailed, RunStopped
from dist_embed.observe.events import Event
from dist_embed.parallel.stop import stop_requested

POLL_SECONDS = 1.0
END_SECONDS = 20.0  # that what runs the workers may take to end
_NOT_BEGUN = "stopped as asked, before the workers had begun"


class Deliveries:
    """The mailbox as the launcher sees it: its events, each once."""

    def __init__(self, mailbox: Any, node: Node) -> None:
        self._mailbox = mailbox
        self._node = node
        self._asked: Any = None

    def take(self) -> list[Event]:
        """Those that have come since, or none where Ray is too busy to answer yet.

        Raises NodeLost, and RunFailed where the mailbox is gone.
        """
        give_up_at = time.monotonic() + MAILBOX_SECONDS
        while time.monotonic() < give_up_at:
            self._node.check()
            if self._asked is None:
                self._asked = self._mailbox.take.remote()
            try:
                events: list[Event] = ray.get(self._asked, timeout=POLL_SECONDS)
            except GetTimeoutError:  # the answer, which nobody else gets, is asked for again
                continue
            except RayError as exc:
                self._node.check()
                raise RunFailed(f"the launcher has lost its workers: {exc}") from exc
            self._asked = None
            return events
        return []


class Course:
    """What starts workers until they have a result.

    Args:
        trainer: of so many workers, for the start of this number.
        mailbox: of all starts.
        node: that this process is connected to.
        room: for workers.
        failures: what is outlived.
        show: takes what is to be shown.
        log_folder: named in error messages.
        stop_seconds: see `launch_ray`.
    """

    def __init__(
        self,
        trainer: Callable[[int, int], DataParallelTrainer],
        mailbox: Any,
        node: Node,
        room: Room,
        failures: Failures,
        show: Callable[[Event], None],
        log_folder: str,
        stop_seconds: float,
    ) -> None:
        self._trainer = trainer
        self._mailbox = mailbox
        self._node = node
        self._deliveries = Deliveries(mailbox, node)
        self._room = room
        self._failures = failures
        self._show = show
        self._log_folder = log_folder
        self._stop_seconds = stop_seconds
        self._outlived_conflict = False

    def run(self, workers: int) -> Any:
        """Worker 0's result, of ``workers`` at most.

        Raises what `launch_ray` does.
        """
        for number in itertools.count():
            workers = self._room.wait(workers, self._say, self._heed, again=number > 0)
            # An earlier start's save may have been published after that start had ended.
            outlives_conflict = number > 0 and not self._outlived_conflict
            attempt = Attempt(number, outlives_conflict=outlives_conflict)
            fit = Fit(self._trainer(workers, number), attempt, self)
            with Growth(self._room, workers) as growth:
                outcome = fit.run(growth)
            if attempt.results and not attempt.failures:  # it counts whatever has ended since
                result = attempt.results[-1]
                if fit.stopping or not (fit.paused and getattr(result, "stopped", False)):
                    return result
                workers = fit.paused
                continue
            attempt.failures += untold(attempt, outcome)
            if attempt.is_final or fit.stopping or not may_start_again(outcome):
                self._raise(attempt, outcome)
            elif (fit.leaving or was_announced(outcome)) and not attempt.has_cause:
                self._say("a node was taken away before the workers had saved")
            else:
                self._outlived_conflict |= attempt.has_conflict
                self._wait_after(attempt, outcome)
        raise AssertionError  # it counts without end

    def take(self, attempt: Attempt) -> None:
        """Take in and show what has been told."""
        for event in self._deliveries.take():
            shown = attempt.take(event)
            if shown is not None:
                self._show(shown)

    def pause(self, fit: Fit, growth: Growth) -> None:
        """Ask workers to stop that would better go on elsewhere, or as more."""
        if not self._stop_seconds or fit.paused:  # workers that do not train cannot go on
            return
        if not fit.attempt.is_under_way or fit.attempt.begun < growth.now:
            return
        fit.leaving = bool(self._room.leaving() & fit.attempt.nodes)
        workers = growth.now if fit.leaving else growth.possible()
        if fit.leaving:
            reason = "a node is about to be taken away"
        elif workers > growth.now:
            reason = f"there is room for {workers} workers"
        else:
            return
        fit.paused = workers
        self._mailbox.stop.remote(fit.attempt.number)
        self._say(f"{reason}: the workers save after their step, and the run goes on")

    def stop(self, fit: Fit) -> float | None:
        """Pass on a request to stop, if there is one; returns until when it may take."""
        if not (self._stop_seconds and stop_requested()):
            return None
        until = time.monotonic() + self._stop_seconds
        self._mailbox.stop.remote(fit.attempt.number)
        self._show(asked_to_stop())  # afterwards: a terminal may stand still
        if not fit.attempt.is_under_way and not fit.attempt.is_final:
            raise RunStopped(_NOT_BEGUN)
        return until

    def stopped_too_late(self) -> RunFailed:
        """What a request ends with that workers did not meet in time."""
        return RunFailed(stopped_too_late(self._stop_seconds))

    def _wait_after(self, attempt: Attempt, outcome: Exception | None) -> None:
        """Wait before another start, if there may be one."""
        reason = why(attempt, outcome)
        seconds = self._failures.wait_after(reason)
        if seconds is None:
            self._raise(attempt, outcome)
        self._say(f"workers are started again in {seconds:.0f} s: {reason}")
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._heed()
            time.sleep(min(left, POLL_SECONDS))
        self._room.settle(attempt.nodes, self._heed)

    def _heed(self) -> None:
        """Raises RunStopped where that is asked for while no workers run, and NodeLost."""
        self._node.check()
        if self._stop_seconds and stop_requested():
            self._show(asked_to_stop())
            raise RunStopped(_NOT_BEGUN)

    def _say(self, text: str) -> None:
        self._show({"kind": "line", "text": text})

    def _raise(self, attempt: Attempt, outcome: Exception | None) -> NoReturn:
        beside = self._failures.beside(why(attempt, outcome))
        if attempt.has_cause or (attempt.failures and outcome is None):
            raise_failure(attempt.failures, self._log_folder, beside)
        what = f"a worker was lost: {outcome}" if outcome else "the workers told no result"
        raise RunFailed(f"{what}\n(worker logs: {self._log_folder}){beside}")


class Fit:
    """One start of the workers.

    Attributes:
        attempt: takes what they tell.
        paused: where they were asked to stop, to go on later: as how many.
        leaving: whether that was because a node is about to be taken away.
        stopping: whether the run was asked to stop.
    """

    def __init__(self, trainer: DataParallelTrainer, attempt: Attempt, course: Course) -> None:
        self._trainer = trainer
        self._course = course
        self.attempt = attempt
        self.paused = 0
        self.leaving = False
        self._stop_until: float | None = None

    @property
    def stopping(self) -> bool:
        return self._stop_until is not None

    def run(self, growth: Growth) -> Exception | None:
        """Run the trainer while events are delivered; returns what it raised.

        After a failure that would come again, and any of workers that were asked to stop, the
        others have a moment to tell theirs; then what runs them is ended, they with it.

        Raises:
            RunFailed: asked to stop, the workers did not in time.
            RunStopped: asked to stop while no workers had begun.
            NodeLost: Ray is not there any more.
        """
        is_lost = False
        outcome: list[Exception] = []

        def fit() -> None:
            try:
                self._trainer.fit()
            except Exception as exc:  # handed to the caller
                outcome.append(exc)

        thread = threading.Thread(target=fit, name="fit", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                had_failed = self._has_failed()
                self._course.take(self.attempt)
                if had_failed and self._has_failed():  # others had their time to tell
                    return None
                if self._stop_until is None:
                    self._stop_until = self._course.stop(self)
                elif time.monotonic() > self._stop_until:
                    raise self._course.stopped_too_late()
                self._course.pause(self, growth)
            self._course.take(self.attempt)
            return outcome[0] if outcome else None
        except NodeLost:
            is_lost = True
            raise
        finally:
            if thread.is_alive() and not is_lost:
                # A thread that asks Ray for anything while the connection ends, ends this process
                # with exit code 1 and no message of ours (Ray 2.60, core_worker_process.cc:1109).
                # By a thread: of a cluster that does not answer Ray waits a minute, deaf to
                # signals.
                given_up = threading.Event()
                ending = threading.Thread(target=_end_fit, args=(thread, given_up), daemon=True)
                ending.start()
                thread.join(END_SECONDS)
                given_up.set()
                ending.join(END_SECONDS)  # it asks Ray too

    def _has_failed(self) -> bool:
        """With no other try wanted."""
        return self.attempt.is_final or (self.stopping and bool(self.attempt.failures))


def _end_fit(thread: threading.Thread, given_up: threading.Event) -> None:
    """End the controller that ``thread`` waits for, which may be there only by and by."""
    while thread.is_alive() and not given_up.is_set():
        with suppress(Exception):
            _end_controller()
        thread.join(POLL_SECONDS)


def _end_controller() -> None:
    """End the actor by which Ray Train runs the workers, and they with it: `fit` then returns.

    Ray Train has no way to be told; what is used here is what `ray.kill` does (Ray 2.60).
    """
    from ray._private import state, worker

    connection = worker.global_worker
    for name, actor in state.actors(job_id=connection.current_job_id).items():
        if actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
            connection.core_worker.kill_actor(ray.ActorID.from_hex(name), True)

"""One start of the workers under Ray Train: run, heard, and asked to stop where they are to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dist_embed.cluster.failure import (
    FAREWELL_SECONDS,
    Start,
    asked_to_stop,
    stopped_too_late,
)
from dist_embed.cluster.feed import Feed
from dist_embed.cluster.ray_aside import END_SECONDS, POLL_SECONDS, Aside, Rest
from dist_embed.cluster.ray_controller import end_controllers
from dist_embed.cluster.ray_node import Node, NodeLost
from dist_embed.cluster.ray_outcome import ended_by_itself
from dist_embed.cluster.ray_room import Outlook, Room
from dist_embed.cluster.ray_worker import MAILBOX_SECONDS
from dist_embed.errors import RunFailed
from dist_embed.observe.events import Event
from dist_embed.parallel.stop import request_stop, stop_requested
from dist_embed.parallel.threads import WaitedThread

T = TypeVar("T")


class Mail:
    """The mailbox as the launcher sees it: its events, each once, and the request to stop."""

    def __init__(self, mailbox: Any, node: Node) -> None:
        self._mailbox = mailbox
        self._node = node
        self._asked: Any = None

    def take(self, seconds: float) -> list[Event]:
        """Those that have come since; none where Ray is too busy to answer within so long.

        Raises NodeLost, and RunFailed where the mailbox is gone.
        """
        give_up_at = time.monotonic() + seconds
        while True:
            self._node.check()
            if self._asked is None:
                self._asked = self._mailbox.take.remote()
            try:
                events: list[Event] = ray.get(self._asked, timeout=POLL_SECONDS)
            except GetTimeoutError:  # the answer, which nobody else gets, is asked for again
                if time.monotonic() >= give_up_at:
                    return []
                continue
            except RayError as exc:
                self._node.check()
                raise RunFailed(
                    "what workers tell this command by was lost (its mailbox, an actor on the same "
                    f"node): {exc}"
                ) from exc
            self._asked = None
            return events

    def answer(self, number: int, answer: Event) -> None:
        """To worker 0 of that start."""
        self._mailbox.answer.remote(number, answer)

    def stop(self, number: int) -> None:
        """Ask the workers of that start, and of those before, to stop."""
        self._mailbox.stop.remote(number)


@dataclass(frozen=True)
class Surroundings:
    """What starts of workers have in common.

    Attributes:
        node: that this process is connected to.
        room: for workers.
        show: takes what is to be shown.
        stop_seconds: see `launch_ray`.
        feed: likewise.
    """

    node: Node
    room: Room
    show: Callable[[Event], None]
    stop_seconds: float
    feed: Feed | None = None

    def say(self, text: str) -> None:
        """Show a line."""
        self.show({"kind": "line", "text": text})

    def asking(self, do: Callable[[Rest], T]) -> Aside[T]:
        """Something that asks Ray."""
        return Aside(do, self.node, self.say, self.room.timeout_seconds)

    def aside(self, do: Callable[[Rest], T], heed: Callable[[], None]) -> T:
        """What ``do`` returns; ``heed`` is called while it is waited for, and may raise."""
        with self.asking(do) as asking:
            return asking.result(heed)

    def is_asked_to_stop(self) -> bool:
        """Whether a signal has: of workers that do not train it ends the command."""
        return bool(self.stop_seconds) and stop_requested()


class Fit:
    """One start of the workers.

    Attributes:
        start: what they have told.
        paused: where they were asked to stop, to go on later: as how many.
        stopping: whether the run was asked to stop.
        was_idle: whether that was while no workers trained.
    """

    def __init__(
        self, trainer: DataParallelTrainer, workers: int, start: Start, mail: Mail,
        around: Surroundings,
    ) -> None:  # fmt: skip
        self.start = start
        self.paused = 0
        self.stopping = False
        self.was_idle = False
        self._mail = mail
        self._around = around
        self._outlook = Outlook(around.room, workers)
        self._error: Exception | None = None
        self._thread = WaitedThread(target=self._fit, args=(trainer,), name="fit", daemon=True)
        self._done_at: float | None = None
        self._stop_until = 0.0

    def run(self) -> Exception | None:
        """Run the trainer while events are delivered; returns what it raised.

        After a result, after a failure that would come again, and after any of workers that were
        asked to stop, the others have a moment to end; then what runs them is ended, they with it.

        Raises:
            RunFailed: asked to stop, the workers did not in time; or Ray's head has not answered
                for long, and no workers train meanwhile.
            NodeLost: Ray is not there any more.
        """
        around, is_lost = self._around, False
        with around.asking(self._outlook.watch) as watching:
            try:
                self._thread.start()
                while self._thread.is_alive():
                    self._thread.join(POLL_SECONDS)
                    had_failed = self._has_failed()
                    self._take(POLL_SECONDS)
                    self._answer()
                    self._stop()
                    if (had_failed and self._has_failed()) or self._is_overdue() or self.was_idle:
                        return None
                    watching.ended()
                    watching.look(has_limit=not self.start.is_under_way)
                    self._pause()
                self._take(MAILBOX_SECONDS)
                return self._error
            except NodeLost:
                is_lost = True
                raise
            finally:
                if not is_lost and not watching.is_silent:
                    self._end()

    def _fit(self, trainer: DataParallelTrainer) -> None:
        try:
            trainer.fit()
        except Exception as exc:  # handed to the caller
            self._error = exc

    def _take(self, seconds: float) -> None:
        """Take in and show what has been told."""
        for event in self._mail.take(seconds):
            shown = self.start.take(event)
            if shown is not None:
                self._around.show(shown)

    def _answer(self) -> None:
        """Give worker 0 what it has asked for, if it is there."""
        feed = self._around.feed
        if feed is not None and (answer := feed.answer()) is not None:
            self._mail.answer(self.start.number, answer)

    @property
    def was_announced(self) -> bool:
        """Whether a node of the workers, begun or not, was said to be taken away."""
        outlook = self._outlook
        return not outlook.announced.isdisjoint(self.start.nodes | outlook.held)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return not self._thread.is_alive()

    def _has_failed(self) -> bool:
        """With no other try wanted."""
        return self.start.is_final or (self.stopping and bool(self.start.failures))

    def _is_overdue(self) -> bool:
        """Whether workers still run long after the first of them has told the result."""
        if self._done_at is None and self.start.results:
            self._done_at = time.monotonic()
        # All is saved. Who goes on needs their slots: they get as long to give them back as a stop.
        goes_on = self.paused and not self.stopping
        limit = self._around.stop_seconds if goes_on else FAREWELL_SECONDS
        return self._done_at is not None and time.monotonic() - self._done_at > limit

    def _stop(self) -> None:
        """Pass on a request to stop, if there is one."""
        around, start = self._around, self.start
        if self.stopping:
            if time.monotonic() > self._stop_until and not start.results:  # else all is saved
                raise RunFailed(stopped_too_late(around.stop_seconds))
        elif around.is_asked_to_stop():
            self.stopping = True
            self._stop_until = time.monotonic() + around.stop_seconds
            self._mail.stop(start.number)
            around.show(asked_to_stop())  # afterwards: a terminal may stand still
            self.was_idle = not (start.is_under_way or start.is_final)

    def _pause(self) -> None:
        """Ask workers to stop that would better go on elsewhere, or as more."""
        around, start, outlook = self._around, self.start, self._outlook
        # Workers that do not train cannot go on.
        if not around.stop_seconds or self.paused or self.stopping or not start.is_under_way:
            return
        if start.begun < outlook.now:
            return
        outlook.all_run.set()
        if around.node.id in outlook.leaving:
            around.say("the node of this command is about to be taken away")
            request_stop()
            return
        is_leaving = bool(outlook.leaving & start.nodes)
        workers = outlook.now if is_leaving else outlook.possible
        if is_leaving:
            reason = "a node is about to be taken away"
        elif workers > outlook.now:
            reason = f"there is room for {workers} workers"
        else:
            return
        self.paused = workers
        self._mail.stop(start.number)
        around.say(f"{reason}: the workers save after their step, and the run goes on")

    def _end(self) -> None:
        """End what runs the workers, and give free what it holds, unless it has ended by itself."""
        if self.has_ended and ended_by_itself(self._error):
            return
        # In a thread, and waited for: see `Aside`.
        given_up = threading.Event()
        errors: list[Exception] = []
        ending = WaitedThread(target=_end_fit, args=(self._thread, given_up, errors), daemon=True)
        ending.start()
        ending.join(END_SECONDS)
        given_up.set()
        ending.join(END_SECONDS)
        for error in errors:
            name = type(error).__name__
            self._around.say(f"what runs the workers could not be ended: {name}: {error}")


def _end_fit(thread: threading.Thread, given_up: threading.Event, errors: list[Exception]) -> None:
    """End the controller that ``thread`` waits for, which may be there only by and by; ``errors``
    holds how the last try has failed, if it has.
    """
    while not given_up.is_set():
        had_ended = not thread.is_alive()
        try:
            end_controllers()
        except Exception as exc:  # may pass; does not where Ray has other names for what it calls
            errors[:] = [exc]
        else:
            errors.clear()
            if had_ended:  # else it may have asked for slots meanwhile
                return
        if had_ended:
            given_up.wait(POLL_SECONDS)
        else:
            thread.join(POLL_SECONDS)

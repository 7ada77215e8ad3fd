"""Who holds up the others: a worker that makes no progress is named, with what it does.

Each worker says what it is about (`at`), and counts the collectives and phases that it has entered.
A thread of each leaves that in the group's store while nothing moves. Who has entered fewer
collectives than others is the one that they wait for; those that wait for it are not named.

A worker alone waits in no exchange that would end it, so this thread ends it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch.distributed as dist

from dist_embed.observe.phases import phase_now
from dist_embed.parallel.errors import Hangs
from dist_embed.parallel.group import Group

LOOKS = 4  # within the time after which a worker hangs
END_SECONDS = 1.0
FRAMES = 12  # of a stack that are told
# A worker alone is ended after so many times what it has ever needed between two signs of progress,
# if that is longer than its limit.
LONGER = 10
_KEY = "dist_embed/hang"

# What this process's worker is about; None: it may take long, and has limits of its own.
_about: str | None = None
_latest: str | None = None  # that it was about
_steps = 0  # how many different ones, one after the other


def at(about: str | None) -> None:
    """Say what this worker is about from now on, as ``step 12``; None: what may take long."""
    global _about, _latest, _steps
    if about is not None and about != _latest:
        _latest = about
        _steps += 1
    _about = about


def _begin() -> None:
    global _about, _latest, _steps
    _about = _latest = None
    _steps = 0


# What tells whoever has started this process why it ends; None: what `hangs_named` says lines with.
_tell: Callable[[Exception], None] | None = None


def failures_told_by(tell: Callable[[Exception], None]) -> None:
    """Say how this process, a worker's, tells its launcher an error from any thread. It returns
    once the error is on its way.
    """
    global _tell
    _tell = tell


@dataclass(frozen=True)
class _Seen:
    """How far this worker has come.

    Attributes:
        entered: collectives of the group that it has entered.
        about: see `at`.
        begun: phases of steps that it has begun.
        phase: the one that it is in; none: empty.
    """

    entered: int
    about: str | None
    begun: int
    phase: str

    @property
    def where(self) -> str | None:
        """What it is about, for people."""
        return f"{self.about}, {self.phase}" if self.about and self.phase else self.about


class _Patience:
    """How long a worker alone may stay in a phase of a step.

    Looks are counted, not seconds: a process that was stopped, and goes on, has not looked either.

    Attributes:
        still: looks at which it was where it is.
    """

    def __init__(self, looks: float) -> None:
        self._least = looks
        self._seen: _Seen | None = None
        self.still = 0
        self._longest = 0  # that it ever was

    def is_over(self, now: _Seen) -> bool:
        """To be asked at every look."""
        if now != self._seen or now.about is None or not now.phase:
            self._longest = max(self._longest, self.still)
            self._seen, self.still = now, 0
            return False
        self.still += 1
        return _steps > 1 and self.still >= max(self._least, LONGER * self._longest)


@dataclass(frozen=True)
class _State:
    """What a worker tells of itself.

    Attributes:
        looks: how often it has looked, by which it is seen to live.
        entered: collectives of the group that it has entered.
        about: what it is about, with the phase that it is in.
        since: when it has come so far.
        stack: where it is.
    """

    looks: int
    entered: int
    about: str | None
    since: str
    stack: str


@contextmanager
def hangs_named(
    group: Group, seconds: float, say: Callable[[str], None], *, limit: float = math.inf
) -> Iterator[None]:
    """For the length of a block this worker, which runs in the calling thread, is looked after.

    Args:
        group: of workers; all enter.
        seconds: without progress, after which who holds it up is named.
        say: takes the lines.
        limit: seconds in one phase of a step after which a worker alone tells that it `Hangs`, and
            its process ends: not in the first step, which shows how long phases take.

    Not collective: nobody waits here for anybody.
    """
    _begin()
    ended = threading.Event()
    watch = _Watch(group, threading.get_ident(), seconds, say, limit)
    threads = [
        threading.Thread(target=run, args=(ended,), name="hangs", daemon=True)
        for run in (watch.run, watch.look_at_store)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        at(None)
        for thread in threads:
            thread.join(END_SECONDS)  # a call of a store whose host is gone may not return


class _Watch:
    def __init__(
        self, group: Group, worker: int, seconds: float, say: Callable[[str], None], limit: float
    ) -> None:
        self._group = group
        self._worker = worker
        self._seconds = seconds
        self._say = say
        self._limit = limit if group.num_workers == 1 else math.inf
        self._every = min(seconds, self._limit) / LOOKS
        self._looks = 0
        self._own: _State
        self._asked_at: float | None = None  # a call of the store, while it lasts
        # A connection of its own: the worker's may wait for a peer.
        self._store: Any = None
        if group.num_workers > 1:
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]

    def run(self, ended: threading.Event) -> None:
        """Look again and again, until the block has ended or the store has gone."""
        seen: _Seen | None = None
        told = since = 0.0
        when = ""
        patience = _Patience(self._limit / self._every)
        while not ended.wait(self._every):
            try:
                now = self._see()
                if now != seen:
                    seen, since = now, time.monotonic()
                    when = f"{datetime.now(timezone.utc):%H:%M:%S} UTC"
                self._leave(when)
                hangs = now.about is not None and time.monotonic() - since >= self._seconds
                if hangs and told != since:
                    told = since
                    self._name(ended, when, now)
                if patience.is_over(now):
                    self._give_up(now, patience.still * self._every)
            except RuntimeError:  # the store has gone with its host; the worker will notice
                return

    def _give_up(self, now: _Seen, seconds: float) -> NoReturn:
        """End this process, whose worker may be where nothing can be raised."""
        limit = "cluster.timeout_seconds"
        if seconds > 1.5 * self._limit:
            limit += f", and {LONGER} times as long as in any phase before"
        error = Hangs(f"no progress for {seconds:.0f} s ({limit}) in {now.where}")
        error.with_traceback(_traceback_of(self._frame()))
        try:
            if _tell is not None:
                _tell(error)
            else:
                self._say("".join(traceback.format_exception(error)).rstrip())
        finally:
            os._exit(1)

    def look_at_store(self, ended: threading.Event) -> None:
        """Tell it where worker 0, in whose process the store is, does not answer: then nobody can
        say who holds up the others, and most often it is that one.
        """
        # Two for all, on two machines.
        if self._store is None or self._group.rank not in (1, self._group.num_workers - 1):
            return
        told: float | None = None
        while not ended.wait(self._every):
            asked_at = self._asked_at
            if asked_at is None or asked_at == told or _about is None:
                continue
            if time.monotonic() - asked_at >= self._seconds:
                told = asked_at
                self._say(
                    f"worker 0, or its machine, does not answer: worker {self._group.rank}, in "
                    f"{self._see().where}, has waited {self._seconds:.0f} s for its store"
                )

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """The store, for a call."""
        self._asked_at = time.monotonic()
        try:
            yield self._store
        finally:
            self._asked_at = None

    def _entered(self) -> int:
        # torch 2.13: counted by gloo and NCCL for every collective of a group, of DDP's too.
        return int(self._group.process_group._get_sequence_number_for_group())  # type: ignore[attr-defined]

    def _see(self) -> _Seen:
        return _Seen(self._entered(), _about, *phase_now())

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._worker)

    def _leave(self, when: str) -> None:
        self._looks += 1
        frame, seen = self._frame(), self._see()
        stack = traceback.format_stack(frame, FRAMES) if frame is not None else []
        self._own = _State(self._looks, seen.entered, seen.where, when, "".join(stack))
        if self._store is not None:
            with self._asking() as store:
                store.set(f"{_KEY}/{self._group.rank}", json.dumps(asdict(self._own)))

    def _name(self, ended: threading.Event, when: str, seen: _Seen) -> None:
        """Tell who holds up the others, where nobody has told it yet."""
        before = self._states()
        if ended.wait(self._every) or self._see() != seen:
            return
        self._leave(when)
        now = {rank: state for rank, state in self._states().items() if rank in before}
        most = max(state.entered for state in now.values())
        behind = [rank for rank, state in now.items() if state.entered < most]
        if any(now[rank].about is None for rank in behind) or not self._is_first_to_tell(most):
            return
        for rank in behind or [min(now)]:
            state = now[rank]
            all_wait = not behind and self._group.num_workers > 1
            who = "no worker makes progress" if all_wait else f"worker {rank} makes no progress"
            what = f"worker {rank}" if all_wait else "it"
            silent = "" if state.looks > before[rank].looks else " and has not answered of late"
            self._say(
                f"{who} in {state.about}; {what} has been here since {state.since}{silent}:\n"
                + state.stack.rstrip()
            )

    def _is_first_to_tell(self, entered: int) -> bool:
        if self._store is None:
            return True
        own = str(self._group.rank)
        with self._asking() as store:
            told_by = store.compare_set(f"{_KEY}/told/{entered}", "", own)
        return bool(told_by.decode() == own)

    def _states(self) -> dict[int, _State]:
        """Of every worker that has left one."""
        if self._store is None:
            return {0: self._own}
        keys = {rank: f"{_KEY}/{rank}" for rank in range(self._group.num_workers)}
        with self._asking() as store:
            return {
                rank: _State(**json.loads(store.get(key)))
                for rank, key in keys.items()
                if store.check([key])
            }


def _traceback_of(frame: FrameType | None) -> TracebackType | None:
    """As of an error raised there."""
    trace = None
    while frame is not None:
        trace = TracebackType(trace, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return trace

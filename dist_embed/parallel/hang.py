"""Who holds up the others: a worker that makes no progress is named, with what it does.

Each worker says what it is about (`at`), and counts the collectives that it has entered. A thread
of each leaves both in the group's store while nothing moves. Who has entered fewer than others is
the one that they wait for; those that wait for it are not named.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch.distributed as dist

from dist_embed.parallel.group import Group

LOOKS = 4  # within the time after which a worker hangs
END_SECONDS = 1.0
FRAMES = 12  # of a stack that are told
_KEY = "dist_embed/hang"

# What this process's worker is about; None: it may take long, and has limits of its own.
_about: str | None = None


def at(about: str | None) -> None:
    """Say what this worker is about from now on, as ``step 12``; None: what may take long."""
    global _about
    _about = about


@dataclass(frozen=True)
class _State:
    """What a worker tells of itself.

    Attributes:
        looks: how often it has looked, by which it is seen to live.
        entered: collectives of the group that it has entered.
        about: what it is about.
        since: when it has come so far.
        stack: where it is.
    """

    looks: int
    entered: int
    about: str | None
    since: str
    stack: str


@contextmanager
def hangs_named(group: Group, seconds: float, say: Callable[[str], None]) -> Iterator[None]:
    """For the length of a block this worker, which runs in the calling thread, is looked after.

    Args:
        group: of workers; all enter.
        seconds: without progress, after which who holds it up is named.
        say: takes the lines.

    Not collective: nobody waits here for anybody.
    """
    at(None)
    ended = threading.Event()
    watch = _Watch(group, threading.get_ident(), seconds, say)
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
        self, group: Group, worker: int, seconds: float, say: Callable[[str], None]
    ) -> None:
        self._group = group
        self._worker = worker
        self._seconds = seconds
        self._say = say
        self._every = seconds / LOOKS
        self._looks = 0
        self._own: _State
        self._asked_at: float | None = None  # a call of the store, while it lasts
        # A connection of its own: the worker's may wait for a peer.
        self._store: Any = None
        if group.num_workers > 1:
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]

    def run(self, ended: threading.Event) -> None:
        """Look again and again, until the block has ended or the store has gone."""
        seen: tuple[int, str | None] | None = None
        told = since = 0.0
        when = ""
        while not ended.wait(self._every):
            try:
                now = self._entered(), _about
                if now != seen:
                    seen, since = now, time.monotonic()
                    when = f"{datetime.now(timezone.utc):%H:%M:%S} UTC"
                self._leave(when)
                hangs = _about is not None and time.monotonic() - since >= self._seconds
                if hangs and told != since:
                    told = since
                    self._name(ended, when, now)
            except RuntimeError:  # the store has gone with its host; the worker will notice
                return

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
                    f"{_about}, has waited {self._seconds:.0f} s for its store"
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

    def _leave(self, when: str) -> None:
        self._looks += 1
        frame = sys._current_frames().get(self._worker)
        stack = traceback.format_stack(frame, FRAMES) if frame is not None else []
        self._own = _State(self._looks, self._entered(), _about, when, "".join(stack))
        if self._store is not None:
            with self._asking() as store:
                store.set(f"{_KEY}/{self._group.rank}", json.dumps(asdict(self._own)))

    def _name(self, ended: threading.Event, when: str, seen: tuple[int, str | None]) -> None:
        """Tell who holds up the others, where nobody has told it yet."""
        before = self._states()
        if ended.wait(self._every) or (self._entered(), _about) != seen:
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

"""What asks Ray, in a thread of its own: while Ray's head stands still many a call does not return
(2.60: not within 320 s), and a main thread that is in one hears no signals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from ray.exceptions import RayError

from dist_embed.cluster.ray_node import Node
from dist_embed.errors import RunFailed
from dist_embed.parallel.threads import WaitedThread

POLL_SECONDS = 1.0
SILENT_SECONDS = 30.0  # before it is told
END_SECONDS = 20.0

T = TypeVar("T")
Rest = Callable[[float], None]


class GivenUp(Exception):
    """Nobody waits any more for what is being done aside."""


class Aside(AbstractContextManager["Aside[T]"], Generic[T]):
    """Something that asks Ray, for the length of a ``with`` block.

    Args:
        do: is handed what it calls between two questions, at least once a minute, for a rest of so
            many seconds. That raises `GivenUp` after the block, and `NodeLost` where the node of
            this process has ended, of which nothing more may be asked.
        node: of this process.
        say: takes a line for the user.
        limit: seconds for which Ray may not answer.
    """

    def __init__(
        self, do: Callable[[Rest], T], node: Node, say: Callable[[str], None], limit: float
    ) -> None:
        self._do, self._node, self._say, self._limit = do, node, say, limit
        self._given_up = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._answered_at = time.monotonic()
        self._told = False
        self._thread = WaitedThread(target=self._run, name="aside", daemon=True)

    def __enter__(self) -> Aside[T]:
        try:
            self._thread.start()
        except BaseException:  # of a signal: it may run all the same
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        if self._node.lives() and not self.is_silent:
            # A thread that asks Ray for anything while the connection ends, ends this process with
            # exit code 1 and no message of ours (Ray 2.60, core_worker_process.cc:1109).
            self._thread.join(END_SECONDS)

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has, within so many seconds; raises what it has raised."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    @property
    def is_silent(self) -> bool:
        """Whether Ray has not answered for so long that nothing is to be hoped for in the end."""
        return time.monotonic() - self._answered_at > END_SECONDS

    def look(self, *, has_limit: bool = True) -> None:
        """Say it where Ray does not answer. Raises RunFailed where that takes too long."""
        silent = time.monotonic() - self._answered_at
        if silent < SILENT_SECONDS:
            self._told = False
        elif has_limit and silent > self._limit:
            raise RunFailed(
                f"Ray's head has not answered for {self._limit:.0f} s (cluster.timeout_seconds)"
            )
        elif not self._told:
            self._told = True
            self._say(f"Ray's head has not answered for {SILENT_SECONDS:.0f} s")

    def result(self, heed: Callable[[], None]) -> T:
        """What it returns; ``heed`` is called while it is waited for, and may raise.

        Raises RunFailed where Ray has answered with an error.
        """
        try:
            while not self.ended(POLL_SECONDS):
                heed()
                self.look()
        except RayError as exc:
            raise RunFailed(f"Ray could not be asked: {type(exc).__name__}: {exc}") from exc
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._do(self._rest))
        except GivenUp:
            pass
        except BaseException as exc:  # raised where it is waited for
            self._error = exc

    def _rest(self, seconds: float) -> None:
        self._answered_at = time.monotonic()
        given_up = self._given_up.wait(seconds)
        self._node.check()
        if given_up:
            raise GivenUp
        self._answered_at = time.monotonic()

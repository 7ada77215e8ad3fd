"""Blocks of a stream on several processes, a few blocks at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from dist_embed.errors import UserError
from dist_embed.parallel.main_module import without_main_module
from dist_embed.parallel.parent import end_with_parent
from dist_embed.parallel.stop import deaf_children, hear_sigterm

Result = TypeVar("Result")

# Between looks whether all processes live. A pool that hears of an end by itself does so sooner.
LOOK_SECONDS = 5.0


class Processes:
    """Processes that work on one block of a stream each; 0: one for each core that we may use."""

    def __init__(
        self,
        number: int,
        initializer: Callable[..., None] | None = None,
        arguments: tuple[object, ...] = (),
    ) -> None:
        self.number = number or len(os.sched_getaffinity(0))
        self._executor = ProcessPoolExecutor(
            self.number,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(initializer, arguments),
        )

    def map(
        self, function: Callable[..., Result], arguments: Iterable[tuple[object, ...]]
    ) -> Iterator[Result]:
        """Like Executor.map, but with at most one block more than processes under way.

        ``function`` is importable: the processes do not import this one's main module.
        Raises what the function raises, and UserError where a process was ended from outside.
        """
        under_way: deque[Future[Result]] = deque()
        try:
            for args in arguments:
                if len(under_way) > self.number:
                    yield self._result(under_way.popleft())
                # The main process acts upon a signal to the whole group, and ends them. Of
                # signals they hear SIGTERM alone, see `_start`.
                with deaf_children(), without_main_module():
                    under_way.append(self._executor.submit(function, *args))
            while under_way:
                yield self._result(under_way.popleft())
        except BrokenProcessPool as exc:
            raise UserError(
                f"one of {self.number} processes that prepare data was ended from outside, often "
                "for lack of memory; set data.num_processes to fewer"
            ) from exc

    def _result(self, block: Future[Result]) -> Result:
        while not wait([block], LOOK_SECONDS).done:
            # What a process was sending as it ended is waited for by the pool, for ever.
            if connection.wait([process.sentinel for process in self._started()], 0):
                if wait([block], LOOK_SECONDS).done:
                    break
                raise BrokenProcessPool
        return block.result()

    def close(self, *, at_once: bool = False) -> None:
        """End the processes. Blocks not yet begun are given up, ``at_once`` the others too."""
        if at_once:
            # No public call ends them before Python 3.14 (`kill_workers`). The thread that looks
            # after the pool must not wait then for anybody to take a block that is being sent
            # (before 3.11.5 it does; CPython, issue 94777), or for the rest of a result.
            executor: Any = self._executor
            if sys.version_info < (3, 11, 5):
                executor._call_queue._reader.close()
            executor._result_queue._writer.close()
            for process in self._started():
                process.kill()
        self._executor.shutdown(cancel_futures=True)

    def _started(self) -> list[BaseProcess]:
        return list((self._executor._processes or {}).values())


@contextmanager
def processes(number: int) -> Iterator[Processes]:
    """`Processes` for the length of a ``with`` block; 0: one per core."""
    with ended(Processes(number)) as pool:
        yield pool


@contextmanager
def ended(pool: Processes) -> Iterator[Processes]:
    """End them with a ``with`` block, after an error or a signal without waiting for any block."""
    try:
        yield pool
    except BaseException:
        pool.close(at_once=True)
        raise
    pool.close()


def _start(initializer: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    hear_sigterm()  # by which a pool of which one has ended ends the others, and waits for them
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if initializer is not None:
        initializer(*arguments)

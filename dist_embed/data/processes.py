"""Blocks of a stream on several processes, a few blocks at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from dist_embed.config.errors import UserError
from dist_embed.parallel.parent import end_with_parent

Result = TypeVar("Result")


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

        Raises what the function raises, and UserError where a process was ended from outside.
        """
        under_way: deque[Future[Result]] = deque()
        try:
            for args in arguments:
                if len(under_way) > self.number:
                    yield under_way.popleft().result()
                under_way.append(self._executor.submit(function, *args))
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as exc:
            raise UserError(
                f"one of {self.number} processes that prepare data was ended from outside, often "
                "for lack of memory; set data.num_processes to fewer"
            ) from exc

    def close(self) -> None:
        """End the processes; blocks not yet begun are given up."""
        self._executor.shutdown(cancel_futures=True)


@contextmanager
def processes(number: int) -> Iterator[Processes]:
    """`Processes` for the length of a ``with`` block; 0: one per core."""
    pool = Processes(number)
    try:
        yield pool
    finally:
        pool.close()


def _start(initializer: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if initializer is not None:
        initializer(*arguments)

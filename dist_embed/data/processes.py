"""Blocks of a stream on several processes, a few blocks at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from dist_embed.data.executor import Arguments, in_order
from dist_embed.data.scratch import scratch_folder
from dist_embed.errors import RunFailed
from dist_embed.parallel.machine import available_bytes, usable_cores
from dist_embed.parallel.main_module import without_main_module
from dist_embed.parallel.parent import end_with_parent
from dist_embed.parallel.safe_path import safe_path
from dist_embed.parallel.stop import deaf_children, hear_sigterm

Result = TypeVar("Result")


class ProcessEnded(RunFailed):
    """A process that prepares data was ended from outside."""


# Between looks whether all processes live. A pool that hears of an end by itself does so sooner.
LOOK_SECONDS = 5.0


# Private memory of one, with 10⁶ words a side: 156 MiB as it encodes, 307 MiB as it counts
# (docs/scale.md). Tables of words are mapped, one copy for all.
PROCESS_BYTES = 320 * 2**20
# Tokenizers of pieces are copied, and take 20 to 36 times their pickled size (`tokenizers` 0.23.3;
# bpe and unigram of English text): 17 to 36 MiB of 32 thousand pieces, 75 of 68 thousand, 149 to
# 238 of 250 thousand.
_TIMES_PICKLED = 36


def process_bytes(arguments: Arguments = ()) -> int:
    """Private memory of a process that is handed ``arguments`` as it starts."""
    return PROCESS_BYTES + _TIMES_PICKLED * len(ForkingPickler.dumps(arguments))


def processes_that_fit(arguments: Arguments = ()) -> int:
    """One for each core that we may use, or as many as there is memory for where each is handed
    ``arguments``.
    """
    return max(1, min(usable_cores(), available_bytes() // process_bytes(arguments)))


class Processes:
    """Processes that work on one block of a stream each; 0: see `processes_that_fit`."""

    def __init__(
        self,
        number: int,
        initializer: Callable[..., None] | None = None,
        arguments: Arguments = (),
    ) -> None:
        self.number = number or processes_that_fit(arguments)
        # Its locks start Python's tracker of such things, which is a process, too.
        with safe_path(), self._starting():
            self._executor = ProcessPoolExecutor(
                self.number,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(initializer, arguments),
            )

    def map(
        self, function: Callable[..., Result], arguments: Iterable[Arguments]
    ) -> Iterator[Result]:
        """Like Executor.map, but with at most one block more than processes under way.

        ``function`` is importable: the processes do not import this one's main module.
        Raises what the function raises, and ProcessEnded where a process was ended from outside.
        """

        def begin(args: Arguments) -> Future[Result]:
            # The main process acts upon a signal to the whole group, and ends them. Of
            # signals they hear SIGTERM alone, see `_start`.
            with safe_path(), deaf_children(), without_main_module(), self._starting():
                return self._executor.submit(function, *args)

        try:
            yield from in_order(arguments, begin, self._result, lambda: self.number)
        except BrokenProcessPool as exc:
            raise self._ended() from exc

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """What starts processes may write to one that has ended."""
        try:
            yield
        except BrokenPipeError as exc:
            raise self._ended() from exc

    def _ended(self) -> ProcessEnded:
        return ProcessEnded(
            f"one of {self.number} processes that prepare data was ended from outside, often for "
            "lack of memory; set data.num_processes to fewer"
        )

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
def processes(
    number: int, initializer: Callable[..., None] | None = None, arguments: Arguments = ()
) -> Iterator[Processes]:
    """`Processes` for the length of a ``with`` block, ended after an error or a signal without
    waiting for any block; 0: see `processes_that_fit`.
    """
    pool = Processes(number, initializer, arguments)
    try:
        yield pool
    except BaseException:
        pool.close(at_once=True)
        raise
    pool.close()


class ThisMachine:
    """An `Executor`: so many processes of this machine; 0: see `processes_that_fit`."""

    def __init__(self, num_processes: int) -> None:
        self._number = num_processes

    def pool(
        self, initializer: Callable[..., None] | None = None, arguments: Arguments = ()
    ) -> AbstractContextManager[Processes]:
        """See `Executor`."""
        return processes(self._number, initializer, arguments)

    def scratch(self, prefix: str, what: str) -> AbstractContextManager[str]:
        """See `Executor`; raises UserError as `scratch_folder` does."""
        return scratch_folder(prefix, what)


def _start(initializer: Callable[..., None] | None, arguments: Arguments) -> None:
    hear_sigterm()  # by which a pool of which one has ended ends the others, and waits for them
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    if initializer is not None:
        initializer(*arguments)

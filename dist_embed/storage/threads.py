"""Several calls of a store at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
    call: Callable[[T], R], items: Iterable[T], then: Callable[[R], None], *, num_threads: int
) -> None:
    """``then(call(item))`` for each item: the calls by threads, what follows here, as they end.

    Raises the first error of either. No call is begun after it, and those under way are waited for:
    they use the caller's memory. Only what ends the process (a signal) waits for none.

    The threads are daemons, for a store may hang: those of a ``ThreadPoolExecutor`` would be waited
    for at the interpreter's end, without a limit (Python 3.11, concurrent/futures/thread.py:
    _python_exit).
    """
    tasks: list[tuple[T, Future[R]]] = [(item, Future()) for item in items]
    left = iter(tasks)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            # From one iterator of a list, which gives each to one thread alone.
            task = next(left, None)
            if task is None:
                return
            item, outcome = task
            try:
                outcome.set_result(call(item))
            except BaseException as exc:  # raised where the results are used
                over.set()
                outcome.set_exception(exc)

    threads = [
        threading.Thread(target=work, name="store", daemon=True)
        for _ in range(min(num_threads, len(tasks)))
    ]
    waits = True
    try:
        for thread in threads:
            thread.start()
        for outcome in as_completed([outcome for _, outcome in tasks]):
            then(outcome.result())
    except BaseException as exc:
        waits = not isinstance(exc, SystemExit | KeyboardInterrupt)
        raise
    finally:
        over.set()
        for thread in threads:
            if waits and thread.ident is not None:
                thread.join()

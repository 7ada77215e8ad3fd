"""Threads that can be waited for again after a signal has interrupted a wait."""

from __future__ import annotations

import threading
from typing import Any


class WaitedThread(threading.Thread):
    """For threads whose `is_alive` is asked, or which are joined a second time.

    Where a signal's handler raises within a `join`, Python takes the thread for ended, whatever it
    still does (3.10 to 3.12, threading.py:_wait_for_tstate_lock): `is_alive` is False, and the next
    `join` returns at once.

    To be joined with a limit: where a signal breaks off `start` nobody knows whether the thread
    will run, and one that does not is alive for ever.

    Attributes:
        begun: whether it runs, has run or may yet.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.begun = False
        self._has_run = threading.Event()

    def start(self) -> None:
        """See `threading.Thread`."""
        self.begun = True  # a signal may break off what follows, and the thread run all the same
        try:
            super().start()
        except RuntimeError:  # there is room for no more threads, or it was started before
            self.begun = self.ident is not None
            raise

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            super().run()
        finally:
            self._has_run.set()

    def join(self, timeout: float | None = None) -> None:
        """See `threading.Thread`; one that has not begun is not waited for."""
        if self.begun and self._has_run.wait(timeout):
            super().join(timeout)

    def is_alive(self) -> bool:
        """See `threading.Thread`."""
        return super().is_alive() or (self.begun and not self._has_run.is_set())

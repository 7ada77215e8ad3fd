"""A thread that is waited for also where a signal has interrupted a wait before."""

from __future__ import annotations

import threading
from typing import Any


class WaitedThread(threading.Thread):
    """For threads whose `is_alive` is asked, or which are joined a second time.

    Where a signal's handler raises within a `join`, Python takes the thread for ended, whatever it
    still does (3.10 to 3.12, threading.py:_wait_for_tstate_lock): `is_alive` is False, and the next
    `join` returns at once.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._begun = False
        self._has_run = threading.Event()

    def start(self) -> None:
        """See `threading.Thread`."""
        self._begun = True  # a signal may break off what follows, and the thread run all the same
        try:
            super().start()
        except RuntimeError:  # there is room for no more threads
            self._begun = False
            raise

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            super().run()
        finally:
            self._has_run.set()

    def join(self, timeout: float | None = None) -> None:
        """See `threading.Thread`; one that has not begun is not waited for."""
        if self._begun and self._has_run.wait(timeout):
            super().join(timeout)

    def is_alive(self) -> bool:
        """See `threading.Thread`."""
        return super().is_alive() or (self._begun and not self._has_run.is_set())

"""A thread that one can wait for whom a signal may interrupt."""

from __future__ import annotations

import threading
from typing import Any


class WaitedThread(threading.Thread):
    """A thread that has ended only once it has.

    Where an exception of a signal's handler breaks a `join` off, Python takes the thread for ended,
    whatever it still does (3.10 and 3.11, threading.py:_wait_for_tstate_lock): `is_alive` is False,
    and the next `join` returns at once.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._has_run = threading.Event()

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            super().run()
        finally:
            self._has_run.set()

    def join(self, timeout: float | None = None) -> None:
        """See `threading.Thread`."""
        if self._has_run.wait(timeout):
            super().join()

    def is_alive(self) -> bool:
        """See `threading.Thread`."""
        return super().is_alive() or (self.ident is not None and not self._has_run.is_set())

"""Waits that a signal breaks off, and starts of threads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest


class Interrupted(Exception):
    """Raised by the handler of a signal."""


@contextmanager
def broken_off(seconds: float = 0.1) -> Iterator[None]:
    """What the block, of the main thread, waits for does not come before a signal does, whose
    handler raises.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    main = threading.get_ident()
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(main, signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        timer.start()
        with pytest.raises(Interrupted):
            yield
        timer.join(60)
    finally:
        signal.signal(signal.SIGUSR1, before)


def broken_off_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends the process as the thread of that name, or of none, has just begun."""
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        original(thread)
        if thread.name.startswith(name):
            raise SystemExit(143)

    monkeypatch.setattr(threading.Thread, "start", start)

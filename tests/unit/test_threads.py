"""Threads that are waited for."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import pytest

from dist_embed.parallel.threads import WaitedThread


class Interrupted(Exception):
    """By a signal."""


def test_a_thread_lives_on_where_the_wait_for_it_is_broken_off() -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    go_on = threading.Event()
    thread = WaitedThread(target=go_on.wait, daemon=True)
    assert not thread.is_alive()
    thread.start()
    before = signal.signal(signal.SIGALRM, on_signal)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            thread.join(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert thread.is_alive()
    thread.join(0.05)
    assert thread.is_alive()
    go_on.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_thread_that_raises_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    thread = WaitedThread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert not thread.is_alive()

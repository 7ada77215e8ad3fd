"""Threads that are waited for."""

from __future__ import annotations

import threading

import pytest

from dist_embed.parallel.threads import WaitedThread
from tests.unit.broken_off import broken_off


def test_a_thread_lives_on_where_the_wait_for_it_is_broken_off() -> None:
    go_on = threading.Event()
    thread = WaitedThread(target=go_on.wait, daemon=True)
    assert not thread.is_alive()
    thread.start()
    with broken_off():
        thread.join(60)
    assert thread.is_alive()
    thread.join(0.05)
    assert thread.is_alive()
    go_on.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_thread_that_has_not_begun_is_not_waited_for() -> None:
    thread = WaitedThread(target=int)
    thread.join()
    assert not thread.is_alive()


def test_a_thread_that_raises_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    thread = WaitedThread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert not thread.is_alive()

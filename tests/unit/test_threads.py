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


def test_a_thread_is_waited_for_where_its_start_is_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, has_run = threading.Thread.start, threading.Event()

    def start(thread: threading.Thread) -> None:
        monkeypatch.undo()
        threading.Timer(0.1, original, (thread,)).start()
        raise KeyboardInterrupt

    thread = WaitedThread(target=has_run.set)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
    assert thread.is_alive()
    thread.join(60)
    assert has_run.is_set()


def test_a_thread_that_has_not_begun_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread = WaitedThread(target=int)
    thread.join()
    assert not thread.is_alive()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        thread.start()
    thread.join()
    assert not thread.is_alive()


def test_a_thread_that_was_started_twice_is_waited_for() -> None:
    go_on = threading.Event()
    thread = WaitedThread(target=go_on.wait, daemon=True)
    thread.start()
    with pytest.raises(RuntimeError, match="once"):
        thread.start()
    threading.Timer(0.1, go_on.set).start()
    thread.join(60)
    assert go_on.is_set()


def test_a_thread_that_raises_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    thread = WaitedThread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert not thread.is_alive()

"""Calls in several threads: what comes back, what an error stops, who is waited for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dist_embed.storage.threads import in_threads


def test_what_comes_back_is_taken_here_and_no_slow_call_holds_up_what_is_known_of_others() -> None:
    all_others = threading.Event()
    taken: list[tuple[int, str]] = []

    def call(number: int) -> int:
        assert number > 0 or all_others.wait(30)
        return number

    def take(number: int) -> None:
        taken.append((number, threading.current_thread().name))
        if len(taken) == 19:
            all_others.set()

    in_threads(call, range(20), take, num_threads=2)
    here = threading.current_thread().name
    assert sorted(taken) == [(number, here) for number in range(20)]
    in_threads(call, [], take, num_threads=2)
    assert len(taken) == 20


@pytest.mark.parametrize("of_the_taker", [False, True])
@pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError("bad")])
def test_an_error_ends_it_and_what_has_begun_is_waited_for(
    error: BaseException, of_the_taker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    ended: list[int] = []
    join, waited_for = threading.Thread.join, threading.Event()

    def noted(thread: threading.Thread, timeout: float | None = None) -> None:
        waited_for.set()
        join(thread, timeout)

    def call(number: int) -> int:
        begun.append(number)
        if number == 1 and not of_the_taker:
            raise error
        assert number < 2 or waited_for.wait(30)
        ended.append(number)
        return number

    def take(number: int) -> None:
        if number == 1 and of_the_taker:
            raise error

    monkeypatch.setattr(threading.Thread, "join", noted)
    with pytest.raises(type(error), match="bad"):
        in_threads(call, range(100), take, num_threads=3)
    assert len(begun) <= 5  # three that wait, behind the first two
    assert len(ended) == len(begun) - (not of_the_taker)


def test_what_ends_the_process_waits_for_no_call_nor_does_the_interpreter() -> None:
    over, threads = threading.Event(), list[threading.Thread]()

    def call(number: int) -> int:
        threads.append(threading.current_thread())
        assert number == 0 or over.wait(30)
        return number

    def stop(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(call, range(2), stop, num_threads=2)
    assert any(thread.is_alive() for thread in threads)
    assert all(thread.daemon for thread in threads)
    over.set()
    for thread in threads:
        thread.join(30)


def test_a_thread_that_does_not_start_is_an_error_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def once(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", once)
    with pytest.raises(RuntimeError, match="new thread"):
        in_threads(int, range(3), lambda number: None, num_threads=2)
    assert not started[0].is_alive()

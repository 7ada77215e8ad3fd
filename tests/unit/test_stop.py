"""Signals that end a command, and the request to end early."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest

from dist_embed.parallel import stop
from dist_embed.parallel.stop import (
    SIGNALS,
    deaf_children,
    ending_signal,
    exit_on_signals,
    hear_sigterm,
    request_stop,
    stop_on_signals,
    stop_requested,
    taken_signal,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, object]]:
    """Those of the tests' own process, which are there again afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield dict(before)
    for number, handler in before.items():
        signal.signal(number, handler)
    stop._tells_its_launcher = False


@contextmanager
def no_alarm() -> Iterator[None]:
    """As in a process of its own; the alarm clock of the tests (pytest-timeout's) goes on."""
    before, began = signal.setitimer(signal.ITIMER_REAL, 0), time.monotonic()
    try:
        yield
    finally:
        left = before[0] and max(0.1, before[0] - (time.monotonic() - began))
        signal.setitimer(signal.ITIMER_REAL, left, before[1])


def take(number: int) -> None:
    os.kill(os.getpid(), number)


def handled() -> dict[int, object]:
    return {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_command_as_an_error_would(
    number: int, code: int, handlers: dict[int, object]
) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_signals():  # noqa: PT012
        assert ending_signal() is None
        take(number)
    assert ended.value.code == code
    assert ending_signal() == taken_signal() == number
    assert handled() == handlers


def test_what_is_being_ended_is_not_interrupted_by_further_signals() -> None:
    cleaned = []
    with pytest.raises(SystemExit) as ended, exit_on_signals():  # noqa: PT012
        try:
            take(signal.SIGINT)
        finally:
            take(signal.SIGINT)
            take(signal.SIGTERM)
            cleaned.append(1)
    assert ended.value.code == 130
    assert cleaned == [1]


def test_a_signal_that_a_library_has_swallowed_counts_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with pytest.raises(SystemExit), exit_on_signals():  # noqa: PT012
        with pytest.raises(SystemExit):
            take(signal.SIGTERM)
        with stop_on_signals():  # a run that begins all the same
            assert stop_requested()
        now[0] += stop.CLEAN_UP_SECONDS + 0.1
        take(signal.SIGTERM)
    assert not stop_requested()


@pytest.mark.parametrize("block", [exit_on_signals, stop_on_signals])
def test_what_is_ignored_stays_so(block: object) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with block():  # type: ignore[operator]
        take(signal.SIGHUP)
        assert not stop_requested()
        assert taken_signal() is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.fixture
def alone() -> Iterator[None]:
    with exit_on_signals():
        yield


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_within_the_block_and_gone_after_it(number: int) -> None:
    with stop_on_signals():
        assert not stop_requested()
        take(number)
        assert stop_requested()
        assert taken_signal() == number
        take(number)  # `timeout` sends it twice, and a launcher passes on what the group has got
    assert not stop_requested()
    take(number)  # too late to matter: what was asked for has been done
    assert ending_signal() is None


@pytest.mark.usefixtures("alone")
def test_what_follows_a_request_hears_signals_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a study does that goes on after a run whose last step was asked to stop."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = handled()
    with stop_on_signals():
        take(signal.SIGTERM)
    assert handled() == before
    now[0] += stop.CLEAN_UP_SECONDS - 0.1
    take(signal.SIGTERM)  # the same, sent twice
    now[0] += 0.2
    with stop_on_signals():
        assert not stop_requested()
        take(signal.SIGINT)
        assert stop_requested()
    now[0] += stop.CLEAN_UP_SECONDS + 0.1
    with pytest.raises(SystemExit) as ended:
        take(signal.SIGHUP)
    assert ended.value.code == 129
    assert taken_signal() == signal.SIGTERM


def test_a_worker_ignores_what_comes_after_its_request() -> None:
    with stop_on_signals(second_ends=False):
        take(signal.SIGTERM)
    assert set(handled().values()) == {signal.SIG_IGN}


def test_a_local_worker_that_has_done_its_part_is_not_ended_by_a_late_signal() -> None:
    hear_sigterm()
    with stop_on_signals(second_ends=False):
        pass
    assert set(handled().values()) == {signal.SIG_IGN}


def test_a_worker_that_has_failed_tells_so_in_spite_of_a_late_signal() -> None:
    """As under Slurm, which ends all tasks by SIGTERM once one has failed."""
    stop.tell_launcher_in_the_end()
    with pytest.raises(ValueError, match="told"), stop_on_signals(second_ends=False):
        raise ValueError("told")
    assert set(handled().values()) == {signal.SIG_IGN}


def test_a_script_has_its_own_handlers_again_after_a_training(
    handlers: dict[int, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `exit_on_signals`, as in a notebook, whose next cell is stopped in its turn."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stop_on_signals():
        take(signal.SIGTERM)
        assert stop_requested()
    assert handled() == handlers
    with stop_on_signals():
        assert not stop_requested()
        assert taken_signal() is None
        take(signal.SIGINT)
        assert taken_signal() == signal.SIGINT
    cleaned = []
    with pytest.raises(KeyboardInterrupt), stop_on_signals():  # noqa: PT012
        take(signal.SIGINT)
        now[0] += 0.6
        try:
            take(signal.SIGINT)
        finally:
            now[0] += 0.6
            take(signal.SIGINT)  # no third one interrupts what the second one ends
            cleaned.append(1)
    assert cleaned == [1]
    assert ending_signal() is None
    assert handled() == handlers


@pytest.mark.usefixtures("alone")
def test_under_torchrun_a_second_ctrl_c_is_the_first_one_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stop_on_signals(second_ends=False):
        take(signal.SIGINT)
        now[0] += 5
        take(signal.SIGINT)
        assert stop_requested()
    assert ending_signal() is None


@pytest.mark.usefixtures("alone")
def test_a_handler_that_a_library_has_put_before_ours_is_put_behind_it() -> None:
    """As Ray does, in native code: Python does not know of it."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    with no_alarm():
        with stop.handled_here():
            libc.signal(int(signal.SIGTERM), ctypes.c_void_p(1))  # SIG_IGN
            signal.alarm(100)
            take(signal.SIGTERM)
            assert taken_signal() is None
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(SystemExit):
        take(signal.SIGTERM)


def test_an_alarm_clock_of_the_callers_goes_on() -> None:
    with no_alarm():
        signal.setitimer(signal.ITIMER_REAL, 1000.0, 7.0)
        with stop.handled_here():
            signal.alarm(100)
            time.sleep(0.1)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 900 < left < 999.95
    assert interval == 7


def test_when_a_command_is_done_signals_end_what_is_left_with_its_code() -> None:
    code = (
        "import signal, threading, time\n"
        "from dist_embed.parallel.stop import end_at_once_with, exit_on_signals\n"
        "with exit_on_signals(for_good=True):\n"
        "    pass\n"
        "assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL\n"
        "end_at_once_with(5)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"  # what is waited for
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 5


def test_without_a_request_the_handlers_are_those_of_before(handlers: dict[int, object]) -> None:
    with stop_on_signals():
        assert handled() != handlers
    assert handled() == handlers


@pytest.mark.usefixtures("alone")
def test_a_second_ctrl_c_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cleaned = []
    with pytest.raises(SystemExit) as ended, stop_on_signals():  # noqa: PT012
        take(signal.SIGTERM)
        now[0] += 10
        take(signal.SIGINT)  # the first Ctrl-C
        now[0] += 0.2
        take(signal.SIGINT)  # the same, sent twice
        now[0] += 0.8
        try:
            take(signal.SIGINT)
        finally:
            now[0] += 60
            take(signal.SIGINT)
            cleaned.append(1)
    assert ended.value.code == 130
    assert ending_signal() == signal.SIGINT
    assert cleaned == [1]


@pytest.mark.usefixtures("alone")
def test_signals_are_taken_within_the_handling_of_others() -> None:
    taken = []

    def trace(frame: FrameType, event: str, argument: object) -> object:
        # A trace function is not traced itself: one signal within each line of the first.
        if event == "line" and "contextlib" not in frame.f_code.co_filename:
            taken.append(frame.f_lineno)
            signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    with stop_on_signals():
        sys.settrace(trace)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
    sys.settrace(before)
    assert len(taken) > 10
    assert not stop_requested()


@pytest.mark.parametrize("seconds", [0.49, 0.51])
def test_half_a_second_tells_a_second_ctrl_c_from_one_sent_twice(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with exit_on_signals(), suppress(SystemExit), stop_on_signals():
        take(signal.SIGINT)
        now[0] += seconds
        take(signal.SIGINT)
    assert (ending_signal() is not None) == (seconds > 0.5)


def test_a_deaf_child_hears_sigterm_when_told_to() -> None:
    with deaf_children():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as its parent may have been told to
        hear_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert blocked == {signal.SIGINT, signal.SIGHUP}


def test_a_request_made_before_the_block_counts_in_it() -> None:
    # Under Ray a thread listens for the launcher's request before the worker's task begins.
    request_stop()
    with stop_on_signals():
        assert stop_requested()
    assert not stop_requested()


def test_children_are_deaf_and_this_process_is_not() -> None:
    # A new process: it has no resource tracker yet, whose start unblocks signals.
    code = (
        "import signal, subprocess, sys\n"
        "from dist_embed.parallel.stop import deaf_children\n"
        "show = [sys.executable, '-S', '-c', 'import signal; "
        "print(sorted(map(int, signal.pthread_sigmask(0, ()))))']\n"
        "with deaf_children():\n"
        "    subprocess.run(show)\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)\n"
        "subprocess.run(show)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert said.splitlines() == ["[1, 2, 15]", "set()", "[]"]


def test_the_mask_is_that_of_before_after_an_error() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ZeroDivisionError), deaf_children():
        raise ZeroDivisionError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before

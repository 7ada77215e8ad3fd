"""Signals that end a command, and the request to end early that some of them make.

SIGTERM comes from a machine about to be taken away, SIGINT from Ctrl-C, SIGHUP from a terminal that
closes. Each of them ends a command as an error would, so that temporary folders and processes go
with it; while a run trains it is a request instead: a flag of this process, for which the training
loop asks between steps, so that all workers end after the same step, with a checkpoint.

A signal often comes more than once: ``timeout`` sends it to the command and to its group, a local
launcher passes on what the group has got already.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A second SIGINT within this time is the first one sent twice, not a second Ctrl-C.
REPEAT_SECONDS = 0.5
# What is being ended gets this long to clean up before a further signal interrupts that too.
CLEAN_UP_SECONDS = 10.0

_requested = threading.Event()
_taken: list[int] = []  # the first signal that this process has taken since `exit_on_signals`
_ending: list[int] = []  # the same, of those that it ends by


def request_stop() -> None:
    """Ask this process's worker to end after its step."""
    _requested.set()


def stop_requested() -> bool:
    """Whether this process has been asked to end."""
    return _requested.is_set()


def taken_signal() -> int | None:
    """The first signal that this process has taken, as a request or to end by it."""
    return _taken[0] if _taken else None


def ending_signal() -> int | None:
    """The signal by which this process is ending, if it is."""
    return _ending[0] if _ending else None


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """For the length of a block `SIGNALS` end the process as an error would.

    They raise ``SystemExit(128 + number)``, once in `CLEAN_UP_SECONDS`. What was ignored before
    stays so: SIGHUP under ``nohup``, SIGINT of a script's background command. For the main thread.
    """
    _taken.clear()
    _ending.clear()
    raised_at = -math.inf

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at
        del frame
        _taken.append(number)
        request_stop()  # for a run that begins after all, as a library has swallowed what is raised
        now = time.monotonic()
        if now - raised_at > CLEAN_UP_SECONDS:
            raised_at = now
            _end_by(number)

    before = _handle(on_signal)
    try:
        yield
    finally:
        _restore(before)
        _requested.clear()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """For the length of a block `SIGNALS` make the request instead of ending the process.

    A second Ctrl-C, `REPEAT_SECONDS` after the first, ends the process at once, as
    `exit_on_signals` does. A request counts to the block's end, one made before it too. Beyond that
    end a signal that made it is ignored: it comes again, or too late. What was ignored before
    stays so. In any but the main thread Python takes no signals: there somebody else makes the
    request.
    """
    interrupted_at: float | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted_at
        del frame
        _taken.append(number)
        now = time.monotonic()
        request_stop()
        if number != signal.SIGINT:
            return
        if interrupted_at is not None and now - interrupted_at > REPEAT_SECONDS:
            interrupted_at = math.inf  # no third one interrupts what the second one ends
            _end_by(number)
        elif interrupted_at is None:
            interrupted_at = now

    before = _handle(on_signal) if threading.current_thread() is threading.main_thread() else {}
    taken_before = len(_taken)
    try:
        yield
    finally:
        if len(_taken) > taken_before:
            ignore_signals(tuple(before))
        else:
            _restore(before)
        _requested.clear()


def ignore_signals(numbers: tuple[int, ...] = SIGNALS) -> None:
    """From now on they do nothing: what they would end has ended."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started within the block never hear `SIGNALS`, nor do theirs.

    A signal mask is inherited. So a signal to the whole process group, or to every process of a
    job, is for this process alone to act upon: it ends its children itself, or they see that it has
    ended. Holds for processes that `multiprocessing` starts too.
    """
    # Starting multiprocessing's resource tracker unblocks the signals in this thread, and starting
    # anything else starts it first (Python 3.10 to 3.13, resource_tracker.py:ensure_running).
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_sigterm() -> None:
    """To be called first in a deaf child that its parent may end, or ask to stop, by SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent may have been told to ignore it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_by(number: int) -> None:
    _ending.append(number)
    raise SystemExit(128 + number)


def _handle(handler: signal._HANDLER) -> dict[int, signal._HANDLER]:
    """Set the handler of all signals that are not ignored; returns what they had before."""
    heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(before: dict[int, signal._HANDLER]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)

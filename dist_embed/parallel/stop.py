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
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signal import _HANDLER as Handler

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A second SIGINT within this time is the first one sent twice, not a second Ctrl-C.
REPEAT_SECONDS = 0.5
# What is being ended gets this long to clean up before a further signal interrupts that too.
CLEAN_UP_SECONDS = 10.0

# A plain value: handlers nest, and one would wait for a lock that it has interrupted for ever.
_requested = False
_taken: int | None = None  # the first signal that this process has taken
_ending: int | None = None  # the first by which it ends
_last_taken_at = -math.inf
_exits: Handler = None  # the handler of `exit_on_signals`, while it is one
_tells_its_launcher = False  # whether this process is a worker, of a launcher that waits for it


def request_stop() -> None:
    """Ask this process's worker to end after its step."""
    global _requested
    _requested = True


def stop_requested() -> bool:
    """Whether this process has been asked to end."""
    return _requested


def taken_signal() -> int | None:
    """The first signal that this process has taken, as a request or to end by it, since the last
    `exit_on_signals` began.
    """
    return _taken


def ending_signal() -> int | None:
    """The signal by which this process is ending, if it is."""
    return _ending


def forget_signals() -> None:
    """As if none had been taken."""
    global _taken, _ending, _last_taken_at
    _taken = _ending = None
    _last_taken_at = -math.inf


@contextmanager
def exit_on_signals(*, for_good: bool = False) -> Iterator[None]:
    """For the length of a block `SIGNALS` end the process as an error would; ``for_good``: beyond
    its end too.

    They raise ``SystemExit(128 + number)``, but not within `CLEAN_UP_SECONDS` after the last that
    did, or that made a request: it has come twice. What was ignored before stays so: SIGHUP under
    ``nohup``, SIGINT of a script's background command. For the main thread.
    """
    global _exits, _requested
    forget_signals()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if time.monotonic() - _last_taken_at <= CLEAN_UP_SECONDS:
            return
        _note(number)
        request_stop()  # for a run that begins after all, as a library has swallowed what is raised
        _end_by(number)

    before = _handle(on_signal)
    _exits = on_signal
    try:
        yield
    finally:
        if not for_good:
            _exits = None
            _restore(before)
        _requested = False


@contextmanager
def stop_on_signals(*, second_ends: bool = True) -> Iterator[None]:
    """For the length of a block `SIGNALS` make the request instead of ending the process.

    With ``second_ends``, for the process that has workers, a second Ctrl-C, `REPEAT_SECONDS` after
    the first, ends what it does at once, as `exit_on_signals` does, or where that is not in force,
    in a script or a notebook, by KeyboardInterrupt. A request counts to the block's end, one made
    before it too. Beyond that end what was handled before is handled so again; but in a worker
    (without ``second_ends`` and `exit_on_signals`) signals are ignored once one has made the
    request, for its launcher passes on what the whole group has got, and after
    `tell_launcher_in_the_end` in any case. What was ignored before stays so. In any but the main
    thread Python takes no signals: there somebody else makes the request.
    """
    global _requested
    if second_ends and _exits is None:
        forget_signals()
    interrupted_at: float | None = None
    ended, taken = False, False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted_at, ended, taken
        del frame
        taken = True
        _note(number)
        request_stop()
        if number != signal.SIGINT or ended or not second_ends:
            return
        now = time.monotonic()
        if interrupted_at is None:
            interrupted_at = now
        elif now - interrupted_at > REPEAT_SECONDS:
            ended = True  # no third one interrupts what the second one ends
            if _exits is None:
                raise KeyboardInterrupt
            _end_by(number)

    before = _handle(on_signal) if threading.current_thread() is threading.main_thread() else {}
    try:
        yield
    finally:
        if _exits is None and not second_ends and (taken or _tells_its_launcher):
            _restore(dict.fromkeys(before, signal.SIG_IGN))
        else:
            _restore(before)
        _requested = False


def tell_launcher_in_the_end() -> None:
    """Beyond the block of `stop_on_signals` this process, a worker, ignores signals: it has done
    its part, or has failed, and its launcher is to have its own exit code and error for that. One
    that has seen another worker fail sends SIGTERM while this one still tells why.
    """
    global _tells_its_launcher
    _tells_its_launcher = True


def end_at_once_with(code: int) -> None:
    """From now on `SIGNALS` end this process without further ado, with an exit code of its own."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        os._exit(code)

    _handle(on_signal)


@contextmanager
def handled_here() -> Iterator[None]:
    """A block in which a library puts handlers of `SIGNALS` of its own in front of ours, behind
    Python's back, which set an alarm: at its end ours are set anew, and the alarm clock goes on as
    it was. For the main thread; in any other nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds, interval = signal.getitimer(signal.ITIMER_REAL)
    began = time.monotonic()
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))
        left = seconds - (time.monotonic() - began)
        # One that has rung meanwhile stays off, or rings again after its interval.
        signal.setitimer(signal.ITIMER_REAL, left if left > 0 else interval, interval)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started within the block do not hear `SIGNALS`, nor do theirs; only those
    that call `hear_sigterm` hear that one.

    A signal mask is inherited. So a signal to the whole process group, or to every process of a
    job, is for this process alone to act upon: it ends its children itself, or they see that it has
    ended. Holds for processes that `multiprocessing` starts too.
    """
    # Starting multiprocessing's resource tracker unblocks the signals in this thread, and starting
    # anything else starts it first (Python 3.10 to 3.13, resource_tracker.py:ensure_running).
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_sigterm() -> None:
    """To be called first in a deaf child that its parent may end, or ask to stop, by SIGTERM."""
    tell_launcher_in_the_end()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent may have been told to ignore it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _note(number: int) -> None:
    global _taken, _last_taken_at
    _taken = number if _taken is None else _taken
    _last_taken_at = time.monotonic()


def _end_by(number: int) -> None:
    global _ending
    _ending = number if _ending is None else _ending
    raise SystemExit(128 + number)


def _handle(handler: Handler) -> dict[int, Handler]:
    """Set the handler of all signals that are not ignored; returns what they had before."""
    heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(before: dict[int, Handler]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)

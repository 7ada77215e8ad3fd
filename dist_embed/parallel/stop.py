"""A request to end early, which a machine about to be taken away makes with SIGTERM.

The request is a flag of this process. The training loop asks for it between steps, so that all
workers end after the same step, with a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()


def request_stop() -> None:
    """Ask this process's worker to end after its step."""
    _requested.set()


def stop_requested() -> bool:
    """Whether this process has been asked to end."""
    return _requested.is_set()


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """For the length of a block SIGTERM ends the process as an error would, with exit code 143.

    So temporary folders and processes go with it. For the main thread.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """For the length of a block SIGTERM makes the request instead of ending the process.

    A request counts to the block's end, one made before it too. In any but the main thread Python
    takes no signals: there somebody else makes it.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        request_stop()

    takes_signals = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, on_signal) if takes_signals else None
    try:
        yield
    finally:
        if takes_signals:
            signal.signal(signal.SIGTERM, before)
        _requested.clear()

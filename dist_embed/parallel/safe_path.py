"""Processes whose libraries are not looked for in the working folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_NAME = "PYTHONSAFEPATH"


class _Within:
    """The blocks that threads are in, and the variable as it was before the first."""

    lock = Lock()
    blocks = 0
    before: str | None = None


def leave_out_working_folder() -> None:
    """What Python does from 3.11 on where the variable is set, for a process started by ``-c``."""
    if os.environ.get(_NAME) and sys.path[:1] == [""]:
        del sys.path[0]


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that start within the block, and theirs, import no `queue.py` or `tokenizers.py` of
    the user's instead of the library's. Python 3.10 does not know the variable: there a process
    calls `leave_out_working_folder` before it imports what is not Python's own.

    `multiprocessing` and Ray start theirs by ``-c`` and by name, for which Python looks into the
    working folder first. What their parent finds, they find: it hands them its own ``sys.path``.
    Of blocks of several threads the last that ends leaves the variable as it was.
    """
    with _Within.lock:
        if _Within.blocks == 0:
            _Within.before = os.environ.get(_NAME)
            os.environ[_NAME] = "1"
        _Within.blocks += 1
    try:
        yield
    finally:
        with _Within.lock:
            _Within.blocks -= 1
            if _Within.blocks == 0:
                os.environ.pop(_NAME, None)
                if _Within.before is not None:
                    os.environ[_NAME] = _Within.before

"""The process from which local CPU workers are forked.

Importing what a worker needs takes seconds of a core. The server imports it once for all workers,
and beside the launching process, which imports much of it too. CUDA cannot be used in a process
that was forked from one that has touched it: there workers are started anew ("spawn").
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext

from dist_embed.errors import UserError
from dist_embed.parallel.stop import deaf_children

_SOCKET_BYTES = 107  # of Linux, unix(7)
_IMPORTED = ["dist_embed.cluster.forked"]


def worker_context(device: str) -> SpawnContext | ForkServerContext:
    """How to start workers for ``cpu`` or ``cuda``."""
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    _start()
    return multiprocessing.get_context("forkserver")


def start_ahead(device: str) -> None:
    """Start the server already, if workers on ``cpu``, ``cuda`` or ``auto`` will be forked."""
    if device == "cpu" or (device == "auto" and not os.path.exists("/proc/driver/nvidia")):
        _start()


def _start() -> None:
    forkserver.set_forkserver_preload(_IMPORTED)
    # A SIGTERM to the whole process group asks the workers to save and stop. The server must
    # outlive them: through it the launcher learns how they ended.
    try:
        with deaf_children(), _plain_interpreter():
            forkserver.ensure_running()
    except OSError as exc:
        if "AF_UNIX path too long" not in str(exc):
            raise
        raise UserError(
            f"TMPDIR: {tempfile.gettempdir()!r} is too long for a socket in it, whose path may "
            f"have {_SOCKET_BYTES} bytes; set it to a shorter one, such as /tmp"
        ) from exc


@contextmanager
def _plain_interpreter() -> Iterator[None]:
    """The server imports what our libraries do, not what lies in the working directory, where a
    `queue.py` may stand (from Python 3.11 on); and a warning of theirs does not end it.
    """
    options, before = sys.warnoptions[:], os.environ.copy()
    sys.warnoptions.clear()  # of `python -W`, which children are given too
    os.environ["PYTHONSAFEPATH"] = "1"
    if "error" in os.environ.get("PYTHONWARNINGS", ""):
        del os.environ["PYTHONWARNINGS"]
    try:
        yield
    finally:
        sys.warnoptions[:] = options
        for name in ("PYTHONSAFEPATH", "PYTHONWARNINGS"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]

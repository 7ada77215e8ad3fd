"""The process from which local CPU workers are forked.

Importing what a worker needs takes seconds of a core. The server imports it once for all workers,
and beside the launching process, which imports much of it too. CUDA cannot be used in a process
that was forked from one that has touched it: there workers are started anew ("spawn").
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext

from dist_embed.cluster.socket_folder import if_too_long
from dist_embed.parallel.safe_path import safe_path
from dist_embed.parallel.stop import deaf_children
from dist_embed.storage.temporary import system_folder

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
    system_folder()  # in which its socket lies: where there is none, this says so best
    forkserver.set_forkserver_preload(_IMPORTED)
    # A SIGTERM to the whole process group asks the workers to save and stop. The server must
    # outlive them: through it the launcher learns how they ended.
    try:
        with safe_path(), _without_errors_of_warnings(), deaf_children():
            forkserver.ensure_running()
    except OSError as exc:
        if too_long := if_too_long(str(exc), "TMPDIR"):
            raise too_long from exc
        raise


@contextmanager
def _without_errors_of_warnings() -> Iterator[None]:
    """A warning of a library does not end the server."""
    options, before = sys.warnoptions[:], os.environ.get("PYTHONWARNINGS", "")
    sys.warnoptions.clear()  # of `python -W`, which children are given too
    if "error" in before:
        del os.environ["PYTHONWARNINGS"]
    try:
        yield
    finally:
        sys.warnoptions[:] = options
        if "error" in before:
            os.environ["PYTHONWARNINGS"] = before

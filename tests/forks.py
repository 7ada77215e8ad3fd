"""The server from which tests fork processes.

There is one in a process, and its first start decides what it has imported: `tests.forked`.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

IMPORTED = ["tests.forked"]


def forking() -> ForkServerContext:
    """How tests start processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context

"""Processes whose libraries are not looked for in the working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that start within the block, and theirs, import no `queue.py` or `tokenizers.py` of
    the user's instead of the library's (from Python 3.11 on).

    `multiprocessing` and Ray start theirs by ``-c`` and by name, for which Python looks into the
    working folder first. What their parent finds, they find: it hands them its own ``sys.path``.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = before

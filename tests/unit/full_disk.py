"""A disk that is full: what is written beside a file to take its place does not get there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def full_disk() -> Iterator[None]:
    """For a ``with`` block in which files are made durable before they get their names."""

    def fail(handle: int) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "fsync", fail):
        yield

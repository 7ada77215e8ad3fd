"""Files of this machine where others may have left something else in their place."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of a write, about which the system does not say where it went.
_OF_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def regular(path: str | Path, flags: int) -> int:
    """The `opener` of an `open` that neither waits at a named pipe nor reads a device to no end.

    Raises OSError, with the file's name.
    """
    try:
        # O_NONBLOCK changes nothing for a regular file, and a pipe is not waited for.
        handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # a pipe that nobody reads, a socket
            raise _not_regular(path) from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _not_regular(path)


def _not_regular(path: str | Path) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", str(path))


def regular_itself(path: str | Path, flags: int) -> int:
    """Like `regular`, for writing: nor is it a link, behind which another file would be changed."""
    try:
        return regular(path, flags | os.O_NOFOLLOW)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise OSError(exc.errno, "a link, not written through", str(path)) from None
        raise


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """What the system says of a write in the block names the file that is written."""
    try:
        yield
    except OSError as exc:
        if exc.filename is not None or exc.errno not in _OF_WRITES:
            raise
        raise OSError(exc.errno, os.strerror(exc.errno), str(path)) from exc


class NamedFile(io.FileIO):
    """An open file, to write, whose failed writes are `named`."""

    def __init__(self, handle: int, path: str | Path) -> None:
        super().__init__(handle, "wb")
        self._path = path

    def write(self, content: Any) -> int:
        try:
            with named(self._path):
                return super().write(content)
        except BrokenPipeError as exc:  # not in `named`, whose blocks may write to processes, too
            exc.filename = str(self._path)
            raise

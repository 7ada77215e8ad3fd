"""Folders for temporary files that do not stay for ever, however their process ends.

SIGKILL leaves a process no time to remove them. The next command does as it starts, among the
system's temporary files, and elsewhere the next process that makes such a folder. Which process a
folder belongs to is told by a lock on it, which the kernel gives free: process ids are given anew,
and differ between containers that share a folder. A lock may not be seen by other
machines that share it, so the folder's name holds which kernel can tell (its boot id); folders of
others are left alone, those of this machine before it was started anew among them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_embed.errors import NotWritable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOOK_SECONDS, _REMOVING_SECONDS = 0.05, 60.0


@contextmanager
def temporary_folder(prefix: str, parent: str | Path | None = None) -> Iterator[str]:
    """A new folder for the length of a ``with`` block, removed with all that is in it.

    Folders with the same prefix that killed processes of this machine have left are removed first.

    Args:
        prefix: its name begins so.
        parent: is in it; None: the system's folder of temporary files.
    """
    parent = parent or system_folder()
    prefix = f"{prefix}{_this_kernel()}-"
    _remove_abandoned(prefix, parent)
    folder, lock = _locked_folder(prefix, parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


class Shared:
    """A folder of `shared_folder`, held as long as somebody refers to this."""

    def __init__(self, path: str, handle: int) -> None:
        self.path = path
        weakref.finalize(self, os.close, handle)


def shared_folder(name: str) -> Shared:
    """The folder of that name among the system's temporary files, which processes of this machine
    and user have in common; made where there is none.

    It stays while one of them holds it, and until the next command then.

    Raises:
        OSError: another user has such a folder, or it is being removed for too long.
    """
    path = os.path.join(system_folder(), f"dist_embed-{name}-{_this_kernel()}-{os.getuid()}")
    give_up_at = time.monotonic() + _REMOVING_SECONDS
    while time.monotonic() < give_up_at:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed in between
            continue
        if os.fstat(handle).st_uid != os.getuid():
            os.close(handle)
            raise PermissionError(errno.EPERM, "belongs to another user", path)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                return Shared(path, handle)  # there are no locks here: nobody removes it
        else:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return Shared(path, handle)
        os.close(handle)  # it is being removed
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(errno.ETIMEDOUT, "is being removed by another process", path)


def remove_abandoned() -> None:
    """Remove what killed commands of this machine have left in the system's folder of temporary
    files.
    """
    with suppress(NotWritable):
        _remove_abandoned("dist_embed-", system_folder(), f"-{_this_kernel()}-")


def system_folder() -> str:
    """The system's folder of temporary files. Raises NotWritable: there is none."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as exc:  # it has tried to write to each that it knows
        raise NotWritable(f"{exc.strerror}; set TMPDIR to a folder that can be written to") from exc


def _this_kernel() -> str:
    try:
        return _BOOT_ID.read_text()[:8]
    except OSError:
        return f"pid{os.getpid()}"  # nobody can tell: nobody removes it


def _locked_folder(prefix: str, parent: str | Path) -> tuple[str, int]:
    """A new folder and the handle through which this process holds it."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for abandoned
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                return folder, lock  # there are no locks here: nobody takes it for abandoned
        else:
            if os.path.exists(folder):
                return folder, lock
        os.close(lock)  # another process took it for abandoned before it was locked


def _remove_abandoned(prefix: str, parent: str | Path, part: str = "") -> None:
    with suppress(OSError):
        names = [name for name in os.listdir(parent) if name.startswith(prefix) and part in name]
        for name in names:
            _remove_if_abandoned(os.path.join(parent, name))


def _remove_if_abandoned(folder: str) -> None:
    with suppress(OSError):  # gone, or another user's
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)

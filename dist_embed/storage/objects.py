"""Objects that are written once, under new names, and read back by ranges.

What checkpoints lie on. On an object store every call is repeated while the store fails, up to a
time limit; on a local disk an error counts at once.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dist_embed.errors import StorageError
from dist_embed.storage.calls import (
    cat_range,
    cat_whole,
    exists,
    files_below,
    is_half,
    is_in_place,
    names_in,
    no_such_place,
    protocols,
    put_whole,
)
from dist_embed.storage.clients import filesystem
from dist_embed.storage.local_file import named
from dist_embed.storage.retry import retried
from dist_embed.storage.uri import join, make_folder, modified, sync_folder

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

# Above any chunk: an interrupted upload of one part leaves nothing behind on S3, one of several
# parts leaves them, invisible and paid for.
SINGLE_PUT_BYTES = 512 * 2**20

# Where a store ignores conditions, another one's put of the same moment has arrived after so long.
SETTLE_SECONDS = 2.0

# How often a folder is tried to be removed that others remove from.
_REMOVALS = 100

# Linux reads into at most so many with one call.
_MOST_BUFFERS = 1024

_NAME = re.compile(r"[a-z0-9][A-Za-z0-9._-]{0,199}(/[a-z0-9][A-Za-z0-9._-]{0,199}){0,7}")


class ForeignObject(StorageError):
    """What has an object's name is a link out of the folder, or no regular file."""


@dataclass(frozen=True)
class Entry:
    """One object found by `ObjectStore.entries`."""

    name: str
    size_bytes: int
    modified: float  # seconds since the epoch, by the store's clock; 0 where it keeps none


class ObjectStore:
    """The objects below one folder or URL, by relative names.

    Args:
        uri: the folder; need not exist.
        retry_seconds: how long a call on a remote store is repeated; None: as `retried` says.

    May be used from several threads. Nothing here is collective. Where it lies on a store every
    method may raise StorageError: that refuses what is asked, or has no such place.
    """

    def __init__(self, uri: str, *, retry_seconds: float | None = None) -> None:
        self.uri = uri
        self._shared, self._root = retried(
            "connect to", uri, lambda: filesystem(uri, retries=False), retry_seconds
        )
        self.is_local = isinstance(self._shared, LocalFileSystem)
        self._retry_seconds = retry_seconds
        self._ignores_conditions = False  # until `keeps_conditions` has found out

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        """Of this thread's own, where the client serves one thread: an answer that another thread
        of sftp's reads is lost (paramiko 5.1, sftp_client.py:_read_response), for which one would
        wait. fsspec keeps one for each.
        """
        if self._shared.async_impl:
            return self._shared
        return filesystem(self.uri, retries=False)[0]

    def put(self, name: str, parts: Iterable[Buffer]) -> None:
        """Write a new object from ``parts``, which are taken one after the other.

        When it returns the object is durable; when it raises there may be a part of it. What
        another writer has put there stays. Raises OSError (local) or StoreUnavailable.
        """
        path = self._path(name)
        if self.is_local:
            self._check_inside(path)
            _put_local(Path(path), parts)
            return
        data = b"".join(parts)
        self._retried(f"write {name}", lambda: self._pipe(path, data, mode="overwrite"))

    def keeps_conditions(self) -> bool:
        """Whether of two writers who `create` at the same moment one is told: found out by a trial.
        Where that is not certain `create` looks a second time from now on, `SETTLE_SECONDS` later.

        Raises as `put`.
        """
        if self.is_local:
            return True
        path = self._path("trial")

        def once() -> bool:
            # The first may be there: a reply was lost, or it could not be removed. Another run that
            # tries the store at this moment may remove it between two.
            for content in (b"1", b"2", b"3"):
                try:
                    self._pipe(path, content, mode="create")
                except FileExistsError:
                    return not is_in_place(self._fs)  # that was only looked at before
            return False

        self._ignores_conditions = not self._retried("write a trial", once)
        with suppress(StorageError):  # some may write and not remove
            self.remove("trial")
        return not self._ignores_conditions

    def create(self, name: str, data: bytes) -> None:
        """Write an object only if none has that name; its content must be unique.

        Locally by a link, elsewhere by a conditional put. A store that ignores the condition
        keeps the last of two simultaneous writers, whole; the other one is told here, where the
        last one's put comes no later than `SETTLE_SECONDS` (`keeps_conditions`).

        Raises:
            FileExistsError: another object has the name.
            OSError, StoreUnavailable: it could not be written.
        """
        path = self._path(name)
        if self.is_local:
            self._check_inside(path)
            _create_local(Path(path), data)
            return

        def once() -> None:
            # Read first and last: a reply may be lost after the store has written.
            found = self._content(path)
            if found is None:
                with suppress(FileExistsError):
                    self._pipe(path, data, mode="create")
                found = self._content(path)
            if found == data and self._ignores_conditions:
                time.sleep(SETTLE_SECONDS)
                found = self._content(path)
            if found != data:
                raise FileExistsError(errno.EEXIST, "another writer has written", name)

        self._retried(f"create {name}", once)

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | bytearray:
        """Bytes ``start`` to ``end`` of an object; fewer where it ends before.

        Raises FileNotFoundError, OSError (local) or StoreUnavailable.
        """
        path = self._path(name)
        if end is not None and end <= start:
            return b""
        if self.is_local:
            with _open_local(Path(self._root), Path(path)) as file:
                size = os.fstat(file.fileno()).st_size
                data = bytearray(max(0, (size if end is None else min(end, size)) - start))
                return data[: _read_fully(file, start, [memoryview(data)])]

        return self._retried(f"read {name}", lambda: cat_range(self._fs, path, start, end))

    def read_into(self, name: str, start: int, buffers: list[memoryview]) -> int:
        """Like `read`, into ``buffers`` in turn, as far as it reaches; returns the bytes read."""
        if self.is_local:
            path = Path(self._path(name))
            with _open_local(Path(self._root), path) as file:
                return _read_fully(file, start, buffers)
        data = memoryview(self.read(name, start, start + sum(map(len, buffers))))
        done = 0
        for buffer in buffers:
            part = data[done : done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done

    def names(self, folder: str) -> list[str]:
        """Names directly below ``folder``, objects and folders, sorted; empty where it is none."""
        path = self._path(folder)

        def once() -> list[str]:
            return sorted(entry.rsplit("/", 1)[-1] for entry in names_in(self._fs, path))

        return self._retried(f"list {folder}", once)

    def entries(self, folder: str) -> list[Entry]:
        """Every object below ``folder``, however deep; none behind a link that leads elsewhere."""
        path = self._path(folder)
        if self.is_local and os.path.islink(path):
            return []

        def once() -> list[Entry]:
            found = files_below(self._fs, path)
            below = path.rstrip("/") + "/"
            return [
                Entry(f"{folder}/{where.removeprefix(below)}", int(info["size"]), modified(info))
                for where, info in sorted(found.items())
            ]

        return self._retried(f"list {folder}", once)

    def remove(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        path = self._path(name)
        self._check_inside(path)

        def once() -> None:
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                self._fs.rm_file(path)

        self._retried(f"remove {name}", once)
        if self.is_local and Path(path).parent.exists():
            sync_folder(Path(path).parent)

    def remove_folder(self, folder: str) -> None:
        """Remove all objects below ``folder``."""
        path = self._path(folder)
        self._check_inside(path)
        if self.is_local:
            _remove_local(path)
            return

        def once() -> None:
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                self._fs.rm(path, recursive=True)

        self._retried(f"remove {folder}", once)

    def remove_halves(self, folder: str, before: float) -> None:
        """Remove what writers that were killed have left beside the objects of ``folder``, unless
        it has changed since ``before``, in seconds since the epoch.
        """
        if self.is_local or not is_in_place(self._fs):
            return
        path = self._path(folder)

        def once() -> None:
            for where, info in files_below(self._fs, path).items():
                if is_half(where) and 0 < modified(info) < before:
                    with suppress(FileNotFoundError):
                        self._fs.rm_file(where)

        self._retried(f"tidy {folder}", once)

    def _path(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise StorageError(f"{name[:80]!r} is not a name of an object below {self.uri}")
        return join(self._root, name)

    def _check_inside(self, path: str) -> None:
        """Refuse to write or remove where a link in the folder leads out of it."""
        if not self.is_local:
            return
        root = os.path.realpath(self._root)
        if not os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(
            os.path.join(root, "")
        ):
            raise ForeignObject(f"{path} leads out of {self._root}")

    def _pipe(self, path: str, data: bytes, *, mode: str) -> None:
        try:
            if is_in_place(self._fs):
                if mode == "create" and exists(self._fs, path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                put_whole(self._fs, path, lambda where: self._fs.pipe_file(where, data))
            elif "s3" in protocols(self._fs):
                self._pipe_s3(path, data, mode=mode)
            else:
                self._pipe_other(path, data, mode=mode)
        except FileNotFoundError as exc:
            raise no_such_place(self.uri, exc) from exc

    def _pipe_other(self, path: str, data: bytes, *, mode: str) -> None:
        try:
            self._fs.pipe_file(path, data, mode=mode)
        except (TypeError, NotImplementedError):  # a file system without conditional puts
            self._fs.pipe_file(path, data)

    def _pipe_s3(self, path: str, data: bytes, *, mode: str) -> None:
        try:
            self._fs.pipe_file(path, data, mode=mode, chunksize=SINGLE_PUT_BYTES)
        except OSError as exc:
            if mode != "create" or exc.errno != errno.ENOSYS:
                raise
            # "501 Not Implemented": a server without conditional puts.
            self._fs.pipe_file(path, data, chunksize=SINGLE_PUT_BYTES)

    def _content(self, path: str) -> bytes | None:
        self._fs.invalidate_cache()
        try:
            return cat_whole(self._fs, path)
        except FileNotFoundError:
            return None

    def _retried(self, what: str, operation: Callable[[], T]) -> T:
        """On a local disk an error counts at once."""
        return (
            operation()
            if self.is_local
            else retried(f"{what} in", self.uri, operation, self._retry_seconds)
        )


def _remove_local(path: str) -> None:
    """Remove a folder with all below it, beside others who may be doing the same."""
    for _ in range(_REMOVALS):
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)  # a link, not what it leads to; or a file, or a pipe
        except FileNotFoundError:
            # Of the folder itself, or (Python 3.10 to 3.12) of something below it that another
            # has removed first: then `rmtree` has left the rest.
            if not os.path.lexists(path):
                return
        else:
            return
    raise OSError(errno.EBUSY, "others are changing it; it was not removed", path)


def _put_local(path: Path, parts: Iterable[Buffer]) -> None:
    make_folder(path.parent)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(handle, "wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                while view.nbytes:
                    view = view[file.write(view) :]
            os.fsync(handle)
        sync_folder(path.parent)
    except OSError as exc:
        with suppress(OSError):  # the first error is the cause
            path.unlink()  # this call has made it
        # Says what is wrong, but not with which file.
        raise OSError(exc.errno, exc.strerror, str(path)) from exc


def _create_local(path: Path, data: bytes) -> None:
    """Publish a whole file under a name that nothing has, by linking an unnamed one to it."""
    make_folder(path.parent)
    try:
        handle = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE, 0o666)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        # No unnamed files here (NFS). The name is still only ours, but a crash may leave it torn.
        _put_local(path, [data])
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with named(path), open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
            # Relative to an open folder: only then does os.link follow the link in /proc.
            os.link(f"/proc/self/fd/{handle}", path.name, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_local(root: Path, path: Path) -> IO[bytes]:
    """Open a regular file that lies below ``root``; a link that leads elsewhere is refused."""
    if not os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
        raise ForeignObject(f"{path} leads out of {root}")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would block
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise ForeignObject(f"{path} is a link to itself") from exc
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ForeignObject(f"{path} is not a regular file")
    return open(handle, "rb", buffering=0)


def _read_fully(file: IO[bytes], start: int, buffers: list[memoryview]) -> int:
    """Fill ``buffers`` in turn from byte ``start`` on; fewer bytes where the file ends."""
    left = [buffer for buffer in buffers if len(buffer)]
    got = 0
    while left:
        count = os.preadv(file.fileno(), left[:_MOST_BUFFERS], start + got)
        if not count:
            break
        got += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
    return got

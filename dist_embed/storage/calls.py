"""One try at what is asked of a store, where file systems of fsspec differ."""

from __future__ import annotations

import errno
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dist_embed.errors import StorageError
from dist_embed.storage.retry import status_of


def protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    """What URLs of a file system may begin with."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def is_in_place(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file is written there by opening it, as on a disk, and not by one request: half of
    it may be seen, and its folder must be there.
    """
    # What fsspec does where a file system has no way of its own.
    return getattr(fs.pipe_file, "__func__", None) is fsspec.AbstractFileSystem.pipe_file


def exists(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a file or folder lies there."""
    if type(fs).exists is not fsspec.AbstractFileSystem.exists:
        return bool(fs.exists(path))
    # fsspec's own says that nothing does where the store does not answer.
    try:
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def names_in(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """The paths of what lies in a folder; none where it is none."""
    fs.invalidate_cache()
    try:
        # It has no error of its own for listing a file.
        if "sftp" in protocols(fs) and fs.info(path)["type"] == "file":
            return []
        found = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # An object lists itself.
    return [name.rstrip("/") for name in found if name.rstrip("/") != path.rstrip("/")]


def files_below(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """What a store says of each file below a folder, by its path."""
    fs.invalidate_cache()
    # Else fsspec leaves out folders that a store gives no answer for. A disk's may go meanwhile.
    own_way = fs.async_impl or isinstance(fs, LocalFileSystem)
    strictly = {} if own_way else {"on_error": "raise"}
    try:
        found: dict[str, dict[str, Any]] = fs.find(path, detail=True, **strictly)
    except FileNotFoundError:
        return {}
    return found


def cat_whole(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """One try at a whole file, in one request."""
    # s3fs asks for the size first, and cuts or pads what has another size by then (2026.9).
    alone = {"max_concurrency": 1} if "s3" in protocols(fs) else {}
    data: bytes = fs.cat_file(path, **alone)
    return data


def cat_range(fs: fsspec.AbstractFileSystem, path: str, start: int, end: int | None) -> bytes:
    """One try at bytes ``start`` to ``end`` of a file; fewer where it ends before."""
    if not start and end is None:
        return cat_whole(fs, path)
    try:
        data: bytes = fs.cat_file(path, start=start or None, end=end)
    except Exception as exc:
        # Object stores refuse a range that begins behind the end, instead of giving nothing.
        if status_of(exc) != 416 and getattr(exc, "errno", None) != errno.EINVAL:
            raise
        fs.invalidate_cache()
        if int(fs.info(path)["size"]) > start:
            raise
        return b""
    return data


def make_parents(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Make the folder of a store's file, where the store has folders."""
    folder = path.rpartition("/")[0]
    has_folders = is_in_place(fs) or "webdav" in protocols(fs)
    if has_folders and folder and not exists(fs, folder):
        with suppress(FileExistsError):  # another worker makes it too
            fs.makedirs(folder, exist_ok=True)


def put_whole(fs: fsspec.AbstractFileSystem, path: str, put: Callable[[str], object]) -> None:
    """Write a whole file by ``put``, which takes where to: half of it is never seen."""
    if not is_in_place(fs):
        put(path)
        return
    make_parents(fs, path)
    folder, _, name = path.rpartition("/")
    beside = f"{folder}/.{name}.{secrets.token_urlsafe(6)}"  # see `is_half`
    try:
        put(beside)
        fs.mv(beside, path)
    except BaseException:
        with suppress(Exception):  # the first error is the cause
            fs.rm_file(beside)
        raise


def is_half(path: str) -> bool:
    """Whether it is a name that `put_whole` writes under: who did may have been killed."""
    return re.fullmatch(r"\..+\.[\w-]{8}", path.rpartition("/")[2]) is not None


def no_such_place(uri: str, exc: FileNotFoundError) -> StorageError:
    """What is raised where a store has no place for what is written."""
    return StorageError(f"cannot write {uri}: there is no such bucket, container or share ({exc})")

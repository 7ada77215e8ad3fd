"""Files at a local path or at any URL that fsspec knows (``s3://``, ``gs://``, ``memory://``, …).

Credentials come from where the store's client looks for them: environment, profile, instance role.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dist_embed.arguments import path_as_text
from dist_embed.errors import StoreUnavailable, UserError
from dist_embed.storage import calls
from dist_embed.storage.bombs import check_held
from dist_embed.storage.clients import filesystem
from dist_embed.storage.local_file import NamedFile, named, regular
from dist_embed.storage.retry import retried
from dist_embed.storage.temporary import temporary_folder

T = TypeVar("T")


# What file systems call the time of the last change, best first; that of the first, which is new
# where a file has been replaced, comes last.
_TIMES = (
    "mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified", "created",
)  # fmt: skip
_TAGS = ("ETag", "etag")  # what else another content has another of
_DIGEST_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Stamp:
    """What a file's folder says of it.

    Attributes:
        size_bytes: None where its server does not say.
        modified: seconds since the epoch, or what the server gives as text; None: it gives nothing.
    """

    size_bytes: int | None
    modified: float | str | None


def archive_of(uri: str) -> str:
    """Where a file lies that is named as fsspec names one in an archive, ``zip://NAME::ARCHIVE``;
    of others ``uri`` itself.
    """
    inside, _, archive = uri.rpartition("::")
    return archive if "://" in inside else uri


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` below it."""
    if not uri.endswith("://"):
        uri = uri.rstrip("/") + "/"
    return uri + "/".join(parts)


def is_local(uri: str) -> bool:
    """Whether ``uri`` lies on this machine's file system."""
    try:
        return isinstance(filesystem(uri)[0], LocalFileSystem)
    except StoreUnavailable:  # a server that is away
        return False


def local_path(uri: str) -> Path:
    """The path of a local ``uri``."""
    return Path(filesystem(uri)[1])


def given(uri: Any, name: str) -> str:
    """A path or URL that a script gave: str or `os.PathLike`.

    Raises UserError, which calls it ``name``, for anything else, an empty one and one that no file
    system can hold.
    """
    found = path_as_text(uri) if isinstance(uri, os.PathLike) else uri
    if not isinstance(found, str) or not found:
        raise UserError(f"{name}: {uri!r} is not allowed: a path or URL, as str or pathlib.Path")
    try:
        bad = b"\0" in os.fsencode(found)
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise UserError(f"{name}: {found!r} is not allowed: no path holds such characters")
    return found


def check_working_folder() -> None:
    """Raise UserError where this process's working folder has been removed: relative paths lead
    nowhere then, and PyTorch ends a process that imports it (2.13, oneMKL).
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(
            "the working directory has been removed: go to another one (cd, in a script os.chdir)"
        ) from None


def absolute(uri: str) -> str:
    """``uri`` without a slash at its end, made absolute where it is a relative local path: workers
    may stand elsewhere.
    """
    archive = archive_of(uri)
    if archive != uri:
        return uri.removesuffix(archive) + absolute(archive)
    if "://" in uri or not is_local(uri):
        return uri if uri.endswith("://") else uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))


def exists(uri: str) -> bool:
    """Whether a file or folder lies there."""

    def look(fs: fsspec.AbstractFileSystem, path: str) -> bool:
        fs.invalidate_cache()
        return calls.exists(fs, path)

    return _called("look at", uri, look)


def stamp(uri: str) -> Stamp:
    """A file's size and time. Raises FileNotFoundError, or StoreUnavailable."""

    def look(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
        fs.invalidate_cache()
        info: dict[str, Any] = fs.info(path)
        return info

    info = _called("look at", uri, look)
    size = info.get("size")
    text = next((str(info[key]) for key in (*_TIMES, *_TAGS) if info.get(key)), None)
    return Stamp(None if size is None else int(size), modified(info) or text)


def modified(info: Mapping[str, Any]) -> float:
    """The time of a file's last change in seconds since the epoch, by what its store's client says
    of it; 0 where it does not say.
    """
    for key in _TIMES:
        value: Any = info.get(key)
        if isinstance(value, str):
            value = _parsed_time(value)
        if hasattr(value, "timestamp"):
            value = value.timestamp()
        if isinstance(value, (int, float)) and value:
            return float(value)
    return 0.0


def _parsed_time(text: str) -> datetime | None:
    """A time as texts of HTTP and of JSON have it."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, TypeError):
            found = parse(text.replace("Z", "+00:00") if parse is datetime.fromisoformat else text)
            return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
    return None


def sha256_of(uri: str, passing: Callable[[Iterable[bytes]], Iterable[bytes]] = iter) -> str:
    """SHA-256 of a file's bytes as stored, in hex. Raises OSError, or StoreUnavailable.

    ``passing`` passes on the file's MiBs, from the first one again where a store has failed.
    """

    def read(fs: fsspec.AbstractFileSystem, path: str) -> str:
        digest = hashlib.sha256()
        with _opened(fs, path, uri) as file:
            for block in passing(iter(lambda: file.read(_DIGEST_BLOCK_BYTES), b"")):
                digest.update(block)
        return digest.hexdigest()

    return _called("read", uri, read, client_repeats=True)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError, or StoreUnavailable from an object store."""
    if is_local(uri):
        with open(local_path(uri), "rb", opener=regular) as file:
            return file.read()
    return _called("read", uri, calls.cat_whole)


def read_given_text(uri: str) -> str:
    """Like `read_text`, of a file that a user has named: it may be a pipe, as /dev/stdin."""
    return local_path(uri).read_bytes().decode() if is_local(uri) else read_text(uri)


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` of a file; fewer where it ends before. Raises as `read_bytes`."""
    if is_local(uri):
        with open(local_path(uri), "rb", opener=regular) as file:
            file.seek(start)
            return file.read(max(0, end - start))
    return _called("read", uri, lambda fs, path: calls.cat_range(fs, path, start, end))


def read_text(uri: str) -> str:
    """The whole file as UTF-8 text. Raises FileNotFoundError."""
    return read_bytes(uri).decode()


def open_file(uri: str, *, read_ahead: bool = True) -> IO[bytes]:
    """An open file, to read it in pieces.

    With ``read_ahead`` a store's client fetches more than was asked for, s3fs 50 MiB more.
    """
    return _called(
        "open", uri, lambda fs, path: _opened(fs, path, uri, read_ahead), client_repeats=True
    )


def _opened(
    fs: fsspec.AbstractFileSystem, path: str, uri: str, read_ahead: bool = True
) -> IO[bytes]:
    """One try at `open_file`."""
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb", opener=regular)
    if archive_of(uri) != uri:
        _check_member(fs, path, uri)
    if not read_ahead:
        with suppress(TypeError):  # not all file systems have a cache that can be chosen
            return _kept_open(fs.open(path, "rb", cache_type="none"), fs, uri)
    return _kept_open(fs.open(path, "rb"), fs, uri)


def _check_member(fs: fsspec.AbstractFileSystem, path: str, uri: str) -> None:
    """Raise `Bomb` where a file in an archive holds too much for what it takes there."""
    packed, info = stamp(archive_of(uri)).size_bytes, fs.info(path)
    if packed is not None:
        check_held(info.get("size") or 0, min(packed, info.get("compress_size", packed)))


def _kept_open(handle: Any, fs: fsspec.AbstractFileSystem, uri: str) -> IO[bytes]:
    """An archive closes what is open of it as soon as nobody has it (fsspec 2026.9.0, zip.py)."""
    if archive_of(uri) != uri:
        with suppress(AttributeError):  # not all files take what they do not know
            handle.archive = fs
    return cast(IO[bytes], handle)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file so that a reader sees all of it or nothing.

    Where files are opened, by writing beside it and renaming, locally after an fsync; an object
    store's put has the property already. For files of our own: a link in such a one's place is
    replaced, what it leads to is not.
    """
    if not is_local(uri):
        _put(uri, lambda fs, where: fs.pipe_file(where, data))
        return
    with whole_file(uri, follow=False) as file:
        file.write(data)


def _put(
    uri: str,
    put: Callable[[fsspec.AbstractFileSystem, str], object],
    *,
    client_repeats: bool = False,
) -> None:
    """Write a whole file of a store by ``put``, which takes its client and where to."""

    def once(fs: fsspec.AbstractFileSystem, path: str) -> None:
        try:
            calls.put_whole(fs, path, lambda where: put(fs, where))
        except FileNotFoundError as exc:
            raise calls.no_such_place(uri, exc) from exc

    _called("write", uri, once, client_repeats=client_repeats)


@contextmanager
def whole_file(uri: str, *, follow: bool = True) -> Iterator[IO[bytes]]:
    """A file to write in pieces, which appears under its name when the block has ended well.

    It replaces one of that name, and leaves it as it was after an error. It has a file number that
    may be read from, too: what goes to a store is a temporary file here until it is whole. As when
    it is written in place, a local file that is there keeps its mode, a new one has what the umask
    leaves, and a link goes on leading to what is written; without ``follow`` the link itself is
    replaced.
    """
    if not is_local(uri):
        with temporary_folder("dist_embed-file-") as folder:
            here = os.path.join(folder, "whole")
            with named(here), open(here, "w+b") as file:
                yield file
            # A large file takes many requests: not all of them again for one that fails.
            _put(uri, lambda fs, where: fs.put_file(here, where), client_repeats=True)
        return
    path = str(local_path(uri))
    mode: int | None = None
    # Before a link is read: the system may refuse to follow it (fs.protected_symlinks).
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(path, follow_symlinks=follow).st_mode
    if mode is not None and stat.S_ISLNK(mode):
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file; a whole file can only replace one", path)
    target = Path(os.path.realpath(path) if follow else path)
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_urlsafe(6)}")
    # Not by mkstemp: the umask and a folder's default rights are for the system to apply.
    at_first = 0o666 if mode is None else 0o600
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, at_first)
    try:
        with named(path), io.BufferedWriter(NamedFile(handle, path)) as file:
            if mode is not None:
                os.fchmod(handle, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(handle)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextmanager
def output_file(path: str) -> Iterator[IO[bytes]]:
    """`whole_file` of a local path; or what else has that name, as a named pipe, to write to."""
    if not os.path.exists(path) or os.path.isfile(path):
        with whole_file(path) as file:
            yield file
        return
    with io.BufferedWriter(NamedFile(os.open(path, os.O_WRONLY), path)) as file:
        yield file


def write_text(uri: str, text: str) -> None:
    """Like `write_bytes`, UTF-8."""
    write_bytes(uri, text.encode())


def write_given_bytes(uri: str, data: bytes) -> None:
    """Like `write_bytes`, into a file that a user has named: a link goes on leading to it."""
    with whole_file(uri) as file:
        file.write(data)


def write_given_text(uri: str, text: str) -> None:
    """Like `write_given_bytes`, UTF-8."""
    write_given_bytes(uri, text.encode())


def sync_folder(folder: Path) -> None:
    """Make a local folder's new names durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a local folder, and durable the names of all folders that were made on the way to it.

    Raises FileExistsError, NotADirectoryError where something else has such a name.
    """
    missing, there = [], folder
    while not there.is_dir():
        missing.append(there)
        there = there.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        sync_folder(made.parent)


def glob(uri: str) -> list[str]:
    """The files that a pattern with ``*``, ``?`` or ``[]`` names, sorted, as URIs like ``uri``."""

    def look(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        sign = re.search(r"[*?[]", path)
        if not sign:
            return [uri]
        fs.invalidate_cache()
        found = sorted(fs.glob(path))
        if isinstance(fs, LocalFileSystem):
            return found
        # A path need not tell which server it lies on: what is found takes the pattern's place.
        fixed, pattern = path[: (cut := path.rfind("/", 0, sign.start()) + 1)], path[cut:]
        return [uri.replace(pattern, name.removeprefix(fixed), 1) for name in found]

    return _called("list", uri, look)


def names_in(uri: str) -> list[str]:
    """The names of what lies in a folder, sorted; none where there is no such folder."""

    def look(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
        return sorted(name.rsplit("/", 1)[-1] for name in calls.names_in(fs, path))

    return _called("list", uri, look)


def remove(uri: str) -> None:
    """Remove a file, or a folder with all below it; nothing happens where there is none."""

    def once(fs: fsspec.AbstractFileSystem, path: str) -> None:
        fs.invalidate_cache()
        with suppress(FileNotFoundError):
            if calls.exists(fs, path):
                fs.rm(path, recursive=True)

    _called("remove", uri, once)


def _called(
    what: str,
    uri: str,
    operation: Callable[[fsspec.AbstractFileSystem, str], T],
    *,
    client_repeats: bool = False,
) -> T:
    """``operation`` with the client of ``uri`` and the path in it. On a local disk, also in an
    archive there, an error counts at once; a store gets some time, and so does connecting to it.

    With ``client_repeats`` its client repeats single requests too.
    """

    def once() -> T:
        return operation(*filesystem(uri, retries=client_repeats))

    return once() if is_local(archive_of(uri)) else retried(what, uri, once)

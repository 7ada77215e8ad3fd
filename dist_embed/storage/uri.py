"""Files at a local path or at any URL that fsspec knows (``s3://``, ``gs://``, ``memory://``, …).

Credentials come from where the store's client looks for them: environment, profile, instance role.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from dist_embed.arguments import path_as_text
from dist_embed.errors import StorageError, UserError
from dist_embed.installed import missing_package
from dist_embed.storage.retry import retried

T = TypeVar("T")


# Checksums in headers that S3-compatible servers lack or get wrong in replies to ranged reads; what
# must be proven here carries SHA-256 of its own.
_S3_CONFIG: dict[str, Any] = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "connect_timeout": 10,
    "read_timeout": 60,
}

# What file systems call the time, or what else another content has another of, best first. Both
# "created" and an ETag are new where a file has been replaced.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "Last-Modified", "created", "ETag")
_DIGEST_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Stamp:
    """What a file's folder says of it.

    Attributes:
        size_bytes: None where its server does not say.
        modified: seconds since the epoch, or what the server gives as text; None: it gives nothing.
    """

    size_bytes: int | None
    modified: float | str | None


def filesystem(uri: str, *, retries: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of ``uri`` and the path in it.

    Without ``retries`` S3's client tries every request once: for callers that repeat
    calls themselves, and whose limit its tries would stretch. Raises StorageError.
    """
    options: dict[str, Any] = {}
    is_s3 = uri.startswith(("s3://", "s3a://"))
    if is_s3:
        options["config_kwargs"] = dict(_S3_CONFIG)
        if not retries:
            options["config_kwargs"]["retries"] = {"total_max_attempts": 1}
    try:
        fs, path = url_to_fs(uri, **options)
    except (ImportError, ValueError) as exc:
        raise StorageError(f"cannot open {uri!r}: {missing_package(exc) or exc}") from exc
    if is_s3 and not retries:
        fs.retries = 1
    return fs, path


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` below it."""
    if not uri.endswith("://"):
        uri = uri.rstrip("/") + "/"
    return uri + "/".join(parts)


def is_local(uri: str) -> bool:
    """Whether ``uri`` lies on this machine's file system."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


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
    if "://" in uri or not is_local(uri):
        return uri if uri.endswith("://") else uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))


def exists(uri: str) -> bool:
    """Whether a file or folder lies there."""
    fs, path = filesystem(uri)

    def look() -> bool:
        fs.invalidate_cache()
        return bool(fs.exists(path))

    return _called(fs, "look at", uri, look)


def stamp(uri: str) -> Stamp:
    """A file's size and time. Raises FileNotFoundError, or StoreUnavailable."""
    fs, path = filesystem(uri)

    def look() -> dict[str, Any]:
        fs.invalidate_cache()
        info: dict[str, Any] = fs.info(path)
        return info

    info = _called(fs, "look at", uri, look)
    size = info.get("size")
    time: Any = next((info[key] for key in _TIMES if info.get(key)), None)
    if hasattr(time, "timestamp"):
        time = time.timestamp()
    return Stamp(
        None if size is None else int(size),
        float(time) if isinstance(time, (int, float)) else time and str(time),
    )


def sha256_of(uri: str) -> str:
    """SHA-256 of a file's bytes as stored, in hex. Raises OSError, or StoreUnavailable."""

    def read() -> str:
        digest = hashlib.sha256()
        with open_file(uri) as file:
            while block := file.read(_DIGEST_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    return _called(filesystem(uri)[0], "read", uri, read)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError, or StoreUnavailable from an object store."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):  # fsspec seeks, which a pipe does not let it: /dev/stdin
        return Path(path).read_bytes()
    data: bytes = _called(fs, "read", uri, lambda: fs.cat_file(path))
    return data


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` of a file; fewer where it ends before. Raises as `read_bytes`."""
    fs, path = filesystem(uri)
    return _called(fs, "read", uri, lambda: cat_range(fs, path, start, end))


def cat_range(fs: fsspec.AbstractFileSystem, path: str, start: int, end: int | None) -> bytes:
    """One try at bytes ``start`` to ``end`` of a file; fewer where it ends before."""
    try:
        data: bytes = fs.cat_file(path, start=start or None, end=end)
    except OSError as exc:
        # S3 refuses a range that begins behind the end, instead of giving nothing.
        if exc.errno != errno.EINVAL:
            raise
        fs.invalidate_cache()
        if int(fs.info(path)["size"]) > start:
            raise
        return b""
    return data


def read_text(uri: str) -> str:
    """The whole file as UTF-8 text. Raises FileNotFoundError."""
    return read_bytes(uri).decode()


def open_file(uri: str, mode: str = "rb", *, read_ahead: bool = True) -> IO[bytes]:
    """An open file, to read or write it in pieces.

    With ``read_ahead`` a store's client fetches more than was asked for, s3fs 50 MiB more.
    """
    fs, path = filesystem(uri)
    if "w" in mode and isinstance(fs, LocalFileSystem):
        make_folder(Path(path).parent)
    handle: IO[bytes]
    if not (read_ahead or isinstance(fs, LocalFileSystem)):
        with suppress(TypeError):  # not all file systems have a cache that can be chosen
            handle = _called(fs, "open", uri, lambda: fs.open(path, mode, cache_type="none"))
            return handle
    handle = _called(fs, "open", uri, lambda: fs.open(path, mode))
    return handle


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file so that a reader sees all of it or nothing.

    Locally by writing beside it, fsync and rename; an object store's put has the property already.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        _called(fs, "write", uri, lambda: fs.pipe_file(path, data))
        return
    with whole_file(uri) as file:
        file.write(data)


@contextmanager
def whole_file(uri: str) -> Iterator[IO[bytes]]:
    """A file to write in pieces, which appears under its name when the block has ended well.

    It replaces one of that name, and leaves it as it was after an error. A local one has a file
    number that may be read from, too. As when it is written in place, a file that is there keeps
    its mode, a new one has what the umask leaves, and a link goes on leading to what is written.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        remote = fs.open(path, "wb")
        try:
            yield remote
        except BaseException:
            remote.discard()
            raise
        remote.close()
        return
    mode: int | None = None
    # Before a link is read: the system may refuse to follow it (fs.protected_symlinks).
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(path).st_mode
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file; a whole file can only replace one", path)
    target = Path(os.path.realpath(path))
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_urlsafe(6)}")
    # Not by mkstemp: the umask and a folder's default rights are for the system to apply.
    at_first = 0o666 if mode is None else 0o600
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, at_first)
    try:
        with io.BufferedWriter(_Named(handle, path)) as file:
            if mode is not None:
                os.fchmod(handle, stat.S_IMODE(mode))
            yield file
            file.flush()
            with _named(path):
                os.fsync(handle)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


class _Named(io.FileIO):
    """An open file whose failed writes name it, as failed openings do: "No space left on device"
    says little alone.
    """

    def __init__(self, handle: int, path: str) -> None:
        super().__init__(handle, "wb")
        self._path = path

    def write(self, content: Any) -> int:
        with _named(self._path):
            return super().write(content)


@contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        exc.filename = path
        raise


@contextmanager
def output_file(path: str) -> Iterator[IO[bytes]]:
    """`whole_file` of a local path; or what else has that name, as a named pipe, to write to."""
    if not os.path.exists(path) or os.path.isfile(path):
        with whole_file(path) as file:
            yield file
        return
    with io.BufferedWriter(_Named(os.open(path, os.O_WRONLY), path)) as file:
        yield file


def check_new_file(uri: str, name: str) -> None:
    """Refuse a local file that `whole_file` could not write, before the work for it.

    Raises UserError, which calls it ``name``. Of a URL nothing is known before.
    """
    if not is_local(uri):
        return
    path = local_path(uri)
    if path.is_dir():
        why = "that is a folder"
    elif path.exists() and not path.is_file():
        why = "not a regular file"
    elif not path.parent.is_dir():
        why = f"the folder {path.parent} does not exist"
    else:
        try:
            # Rights alone do not tell: of a read-only disk, or of root's in /proc.
            with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
                return
        except OSError as exc:
            why = f"nothing can be written there ({exc.strerror})"
    raise UserError(f"{name}: {uri!r} is not allowed: {why}")


def check_writable(folder_uri: str, name: str) -> None:
    """Refuse a folder or URL below which nothing can be written, before the work for it: writes a
    file there, and removes it.

    Raises UserError, which calls it ``name``.
    """
    trial = join(folder_uri, ".trial")
    try:
        write_bytes(trial, b"")
    except (OSError, StorageError) as exc:
        raise UserError(
            f"{name}: {folder_uri!r} is not allowed: nothing can be written there: {exc}"
        ) from exc
    with suppress(OSError, StorageError):  # some may write and not remove
        remove(trial)


def write_text(uri: str, text: str) -> None:
    """Like `write_bytes`, UTF-8."""
    write_bytes(uri, text.encode())


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
    fs, path = filesystem(uri)
    if not any(sign in path for sign in "*?["):
        return [uri]
    local = isinstance(fs, LocalFileSystem)
    return sorted(found if local else str(fs.unstrip_protocol(found)) for found in fs.glob(path))


def names_in(uri: str) -> list[str]:
    """The names of what lies in a folder, sorted; none where there is no such folder."""
    fs, path = filesystem(uri)

    def look() -> list[str]:
        fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    return _called(fs, "list", uri, look)


def remove(uri: str) -> None:
    """Remove a file, or a folder with all below it; nothing happens where there is none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if fs.exists(path):
        fs.rm(path, recursive=True)


def _called(fs: fsspec.AbstractFileSystem, what: str, uri: str, operation: Callable[[], T]) -> T:
    """On a local disk an error counts at once; an object store gets some time."""
    return operation() if isinstance(fs, LocalFileSystem) else retried(what, uri, operation)

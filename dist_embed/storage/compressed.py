"""Files that may be compressed, read as a stream of what they hold."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.spec import AbstractBufferedFile

from dist_embed.storage import uri as storage
from dist_embed.storage.bombs import Bomb, bounded, check_held, size_of
from dist_embed.storage.clients import filesystem

ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".zip")
# A link whose path ends so names a file by it, and has what signs it behind the `?`.
_ENDINGS_OF_FILES = (
    *ENDINGS, ".txt", ".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".tmx", ".parquet",
)  # fmt: skip
# What opening raises, and what reading a damaged or truncated file, or a bomb does.
# RuntimeError: a .zip wants a password. NotImplementedError is one: a compression Python has not.
OPEN_ERRORS = (
    OSError, ValueError, ImportError, RuntimeError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
READ_ERRORS = (
    OSError, EOFError, Bomb, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
_NAMES_SHOWN = 4


def is_compressed(uri: str) -> bool:
    """Whether `open_decompressed` decompresses it by its ending."""
    return name_of(uri).endswith(ENDINGS)


def open_decompressed(uri: str, ending: str | None = None) -> IO[bytes]:
    """What a file holds, a .zip its only file; decompressed by its ending, or as if that were
    ``ending``. A file in an archive is named as fsspec does: ``zip://NAME::ARCHIVE``.

    Raises one of `OPEN_ERRORS`; reading it raises one of `READ_ERRORS`, `Bomb` among them.
    """
    ending = PurePosixPath(name_of(uri)).suffix if ending is None else ending
    if ending == ".zst":
        # pyarrow's reader tells a truncated file and reads several frames; zstandard's cannot.
        packed: Any = storage.open_file(uri)
        size = size_of(packed)
        raw = pa.PythonFile(packed, "r")
        return bounded(pa.CompressedInputStream(raw, "zstd"), packed, size)
    if ending == ".zip":
        archive = zipfile.ZipFile(storage.open_file(uri))
        names = files_in(archive)
        if len(names) != 1:
            raise ValueError(
                f"{len(names)} files in it; name one, as zip://NAME::{uri}, or unpack it"
                + (f" ({', '.join(names[:_NAMES_SHOWN])}, …)" if names else "")
            )
        return open_member(archive, names[0])
    file: Any = storage.open_file(uri)
    if kind := get_compression(f"x{ending}", "infer"):
        size = size_of(file)
        return bounded(compr[kind](file, mode="rb"), file, size)
    # Each line that such a file is asked for takes a copy of a whole block, of 50 MB from S3, and a
    # step back (fsspec 2026.9.0, spec.py:readuntil).
    return io.BufferedReader(file) if isinstance(file, AbstractBufferedFile) else file


def files_in(archive: zipfile.ZipFile) -> list[str]:
    """The names of its files, without what macOS puts beside them."""
    return [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith("__MACOSX/")
        and PurePosixPath(name).name != ".DS_Store"
    ]  # fmt: skip


def missing(uri: str) -> str:
    """What is said of a file that is not there: in an archive, which there are."""
    if storage.archive_of(uri) == uri:
        return "no such file"
    try:
        names = filesystem(uri)[0].find("")
    except FileNotFoundError:  # the archive
        return "no such file"
    return f"no such file; there are {', '.join(names[:_NAMES_SHOWN])}" + (
        ", …" if len(names) > _NAMES_SHOWN else ""
    )


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of a ``.zip``. Raises one of `READ_ERRORS`."""
    there = archive.getinfo(name)
    # zipfile gives no more bytes than it says; of how many they are made it may lie.
    check_held(there.file_size, min(there.compress_size, size_of(archive.fp) or 0))
    try:
        member: Any = archive.open(name)
    except RuntimeError as exc:
        raise zipfile.BadZipFile(str(exc)) from exc
    return io.BufferedReader(member)  # whose lines of limited length are not Python's


def name_of(uri: str) -> str:
    """The name whose ending tells a file's form: in lower case, in an archive the file's own."""
    name = uri.partition("::")[0] if storage.archive_of(uri) != uri else uri
    name = name.lower()  # .GZ, as some systems write it
    path = name.partition("?")[0]
    is_link = name.startswith(("http://", "https://"))
    # Of download.php?f=x.zip it is the whole that ends as the file does.
    return path if is_link and path.endswith(_ENDINGS_OF_FILES) else name

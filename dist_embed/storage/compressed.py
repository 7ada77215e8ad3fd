"""Files that may be compressed, read as a stream of what they hold."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from typing import IO, Any

import pyarrow as pa
from fsspec.core import OpenFile, get_compression
from fsspec.spec import AbstractBufferedFile

from dist_embed.storage import uri as storage
from dist_embed.storage.clients import filesystem

ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".zip")
# What opening raises, and what reading a damaged or truncated file does.
OPEN_ERRORS = (OSError, ValueError, ImportError, zipfile.BadZipFile)
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def is_compressed(uri: str) -> bool:
    """Whether `open_decompressed` decompresses it."""
    return uri.endswith(ENDINGS)


def open_decompressed(uri: str) -> IO[bytes]:
    """What a file holds, a .zip its only file; decompressed by its ending.

    Raises one of `OPEN_ERRORS`.
    """
    if uri.endswith(".zst"):
        # pyarrow's reader tells a truncated file and reads several frames; zstandard's cannot.
        raw = pa.PythonFile(storage.open_file(uri), "r")
        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
    if uri.endswith(".zip"):
        archive = zipfile.ZipFile(storage.open_file(uri))
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if len(names) != 1:
            raise ValueError(f"{len(names)} files in it; a .zip with one is read: unpack it")
        return archive.open(names[0])
    fs, path = filesystem(uri)
    file: Any = OpenFile(fs, path, "rb", get_compression(path, "infer")).open()
    # Each line that such a file is asked for takes a copy of a whole block, of 50 MB from S3, and a
    # step back (fsspec 2026.9.0, spec.py:readuntil).
    return io.BufferedReader(file) if isinstance(file, AbstractBufferedFile) else file

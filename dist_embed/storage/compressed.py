"""Files that may be compressed, read as a stream of what they hold."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from typing import IO

import fsspec
import pyarrow as pa

from dist_embed.storage import uri as storage

ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".zip")
# What opening raises, and what reading a damaged or truncated file does.
OPEN_ERRORS = (OSError, ValueError, ImportError, zipfile.BadZipFile)
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def is_compressed(uri: str) -> bool:
    """Whether `open_decompressed` decompresses it."""
    return uri.endswith(ENDINGS)


def open_decompressed(uri: str) -> IO[bytes]:
    """What a file holds; decompressed by its ending. Raises one of `OPEN_ERRORS`."""
    if uri.endswith(".zst"):
        # pyarrow's reader tells a truncated file and reads several frames; zstandard's cannot.
        raw = pa.PythonFile(storage.open_file(uri), "r")
        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
    file: IO[bytes] = fsspec.open(uri, "rb", compression="infer").open()
    return file

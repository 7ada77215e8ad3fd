"""Files that are proven when they are read.

An index lists them with their sizes and digests, and carries a digest of its own: what hangs on a
proven index is proven. Indexes that were written before say nothing; what they list is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import from_json
from dist_embed.storage.parquet import ParquetError, read_parquet
from dist_embed.storage.retry import retried

_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class FileInfo:
    """A file's size and the SHA-256, in hex, of its bytes as they are stored."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes | memoryview) -> FileInfo:
        """That of a file with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"{self.size_bytes:,} bytes with SHA-256 {self.sha256[:16]}…"


class NotReached(UserError):
    """A file is not there, or cannot be reached; nothing is known of its content."""


def prove(content: bytes | memoryview, expected: FileInfo | None, uri: str, remedy: str) -> None:
    """Look whether what was read is what was written; without ``expected`` nothing is known of it.

    Raises:
        UserError: it is not; the message ends with ``remedy``.
    """
    if expected is None:
        return
    _same(FileInfo.of(content), expected, uri, remedy)


def _same(found: FileInfo, expected: FileInfo, uri: str, remedy: str) -> None:
    if found != expected:
        raise UserError(
            f"{uri} is not the file that was written: {expected} expected, {found} found; {remedy}"
        )


def read_proven(uri: str, expected: FileInfo | None, remedy: str) -> bytes:
    """A whole file, proven. Raises UserError, FileNotFoundError."""
    content = storage.read_bytes(uri)
    prove(content, expected, uri, remedy)
    return content


@contextmanager
def told_of(uri: str, what: str, remedy: str) -> Iterator[None]:
    """A file that cannot be read in the block is told of as `read_table` does."""
    try:
        yield
    except FileNotFoundError as exc:
        raise NotReached(
            f"{what} {uri} cannot be read ({exc}): it was removed, or others were prepared in its "
            f"place meanwhile, which another start would use; else {remedy}"
        ) from exc
    except OSError as exc:
        raise NotReached(f"{what} {uri} cannot be read ({exc})") from exc
    except ParquetError as exc:
        raise UserError(f"{what} {uri} cannot be read ({exc}); {remedy}") from exc


def prove_file(uri: str, expected: FileInfo, remedy: str) -> None:
    """Like `prove`, of a file of any size, which is read in parts. Raises FileNotFoundError too."""
    digest = storage.sha256_of(uri)
    if digest != expected.sha256:
        _same(FileInfo(storage.stamp(uri).size_bytes or 0, digest), expected, uri, remedy)


def copy_proven(uri: str, to: str, expected: FileInfo | None, remedy: str) -> FileInfo:
    """Copy a file of any size in parts; without ``expected`` nothing is known of it.

    Returns what proves it. Raises UserError where it is not what was written: nothing is copied.
    """

    def copy() -> FileInfo:
        digest, size = hashlib.sha256(), 0
        with storage.whole_file(to, follow=False) as written, storage.open_file(uri) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                written.write(block)
            found = FileInfo(size, digest.hexdigest())
            _same(found, expected or found, uri, remedy)
        return found

    if storage.is_local(uri) and storage.is_local(to):
        return copy()
    return retried(f"copy to {to} what is in", uri, copy)


def read_table(
    uri: str,
    columns: Sequence[str],
    expected: FileInfo | None,
    *,
    what: str,
    remedy: str,
    rows: int | None = None,
) -> pa.Table:
    """Columns of a whole Parquet file, whose bytes are proven before they are parsed.

    Args:
        uri: the file.
        columns: their names.
        expected: what proves it; None: nothing does.
        what: the kind of file, for messages.
        remedy: what the user is to do about a file that cannot be used; ends messages.
        rows: how many it must have; None: any number.

    Raises:
        NotReached: it is not there, or cannot be reached.
        UserError: it is not what was written.
    """
    with told_of(uri, what, remedy):
        table = read_parquet(uri, columns, prove=lambda found: prove(found, expected, uri, remedy))
    if rows is not None and table.num_rows != rows:
        raise UserError(
            f"{what} {uri} is not the one that was written: {rows:,} rows expected, "
            f"{table.num_rows:,} found; {remedy}"
        )
    return table


def sealed(values: dict[str, Any]) -> str:
    """``values`` as JSON whose last key, ``sha256``, is the digest of the text before it."""
    body = json.dumps(values, indent=1, ensure_ascii=False).removesuffix("\n}")
    return body + _seal(body)


def unsealed(text: str) -> dict[str, Any]:
    """The values of what `sealed` wrote. Raises ValueError where the text is another one."""
    end = len(_seal(""))
    body, seal = text[:-end], text[-end:]
    if seal != _seal(body):
        raise ValueError("its text is not what its SHA-256, the last key, was taken of")
    values: dict[str, Any] = from_json(text)
    del values["sha256"]
    return values


def _seal(body: str) -> str:
    return f',\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'

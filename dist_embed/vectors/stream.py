"""The bytes of a file of vectors, decompressed as its first ones say; one kind of error.

A file in an archive is named as fsspec does, ``zip://NAME::ARCHIVE`` or ``tar://NAME::ARCHIVE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import OPEN_ERRORS, READ_ERRORS, missing, open_decompressed
from dist_embed.storage.first_bytes import ending_of, no_text
from dist_embed.vectors.file import BYTE_ORDER_MARK, LONGEST_LINE, VectorFileError

_BUFFER_BYTES = 2**20
_LOOKED_AT = 2**8
_OF_TORCH = re.compile(rb"(?s)PK\x03\x04.{26}[^/]+/data\.pkl")  # the first file in the archive


def open_stream(uri: str, *, read_ahead: bool = True) -> IO[bytes]:
    """What a file holds; can jump where it is not `is_packed`. Raises VectorFileError.

    Without ``read_ahead`` just what is asked for is fetched: for readers of large blocks that skip
    others.
    """
    with _errors_named(uri):
        file = storage.open_file(uri, read_ahead=False)
        head = file.read(_LOOKED_AT)
        if _OF_TORCH.match(head):
            raise VectorFileError(
                f"{uri}: is what torch.save writes, pickled, which can run code: it is not read; "
                "save its matrix with safetensors or numpy.save, and its words one a line"
            )
        ending = ending_of(head)
        if ending is None and (not read_ahead or _in_archive(uri)):
            file.seek(0)
            return file
        file.close()
        return open_decompressed(uri, ending or "")


def is_packed(uri: str) -> bool:
    """Whether a file's bytes can only be had one after the other: it is compressed, or lies in an
    archive. Raises VectorFileError.
    """
    if _in_archive(uri):
        return True
    with _errors_named(uri), storage.open_file(uri, read_ahead=False) as file:
        return ending_of(file.read(_LOOKED_AT)) is not None


@contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    try:
        yield
    except (*OPEN_ERRORS, *READ_ERRORS) as exc:
        reason = missing(uri) if isinstance(exc, FileNotFoundError) else exc
        raise VectorFileError(f"cannot read {uri}: {reason}") from exc


def _in_archive(uri: str) -> bool:
    return storage.archive_of(uri) != uri


def read_up_to(file: IO[bytes], count: int, uri: str) -> bytes:
    """The next ``count`` bytes; fewer only where the file ends. Raises VectorFileError."""
    parts = []
    with _errors_named(uri):
        while count > 0 and (data := file.read(min(count, 2**24))):
            parts.append(data)
            count -= len(data)
    return b"".join(parts)


def lines_of(file: IO[bytes], uri: str) -> Iterator[bytes]:
    """The lines of an open text, with their ends and without a mark of the byte order.

    Raises VectorFileError: it cannot be read, or a line has more bytes than `LONGEST_LINE`.
    """
    read = partial(file.readline, LONGEST_LINE + 1)
    with _errors_named(uri):
        for number, line in enumerate(iter(read, b""), start=1):
            if number == 1 and (other := no_text(line)):
                raise VectorFileError(f"{uri}: {other}")
            if len(line) > LONGEST_LINE:
                raise too_long(f"{uri}, line {number}")
            yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def too_long(place: str) -> VectorFileError:
    """What is wrong with the line at ``place``, which has more bytes than `LONGEST_LINE`."""
    return VectorFileError(
        f"{place}: longer than the {LONGEST_LINE:,} bytes that a line may have, so that none fills "
        "the memory"
    )


class Forward:
    """A file read forwards, through a buffer. Raises VectorFileError where it cannot be read.

    Attributes:
        at: bytes that have been handed out.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._file = uri, open_stream(uri)
        self._data, self._place = b"", 0
        self.at = 0

    def __enter__(self) -> Forward:
        return self

    def __exit__(self, *_: object) -> None:
        self._data, self._place = b"", 0
        self._file.close()

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer only where the file ends."""
        if self.ahead(count) < count:
            count = self.ahead(count)
        self._place += count
        self.at += count
        return self._data[self._place - count : self._place]

    def until(self, sign: bytes, most: int) -> bytes | None:
        """The bytes before the next ``sign``, which is passed; None if it is not among the next
        ``most`` bytes: then nothing is passed.
        """
        end = self._data.find(sign, self._place, self._place + most)
        if end < 0:
            self.ahead(most)
            end = self._data.find(sign, self._place, self._place + most)
            if end < 0:
                return None
        return self.take(end + 1 - self._place)[:-1]

    def ahead(self, count: int) -> int:
        """How many of the next ``count`` bytes there are."""
        if len(self._data) - self._place < count:
            rest = self._data[self._place :]
            more = read_up_to(self._file, max(count, _BUFFER_BYTES), self._uri)
            self._data, self._place = rest + more, 0
        return min(count, len(self._data) - self._place)


def go_to(file: IO[bytes], at: int, wanted: int, uri: str, *, packed: bool) -> None:
    """Move from byte ``at`` on to ``wanted``; a file that is `is_packed` is read up to there.

    Raises VectorFileError.
    """
    if not packed:
        file.seek(wanted)
        return
    while at < wanted:
        data = read_up_to(file, min(wanted - at, 2**24), uri)
        if not data:
            raise VectorFileError(f"{uri}: ends before byte {wanted}")
        at += len(data)

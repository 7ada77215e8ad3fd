"""The bytes of a file of vectors, decompressed by its ending; problems become one kind of error."""

from __future__ import annotations

from typing import IO

from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import (
    OPEN_ERRORS,
    READ_ERRORS,
    is_compressed,
    open_decompressed,
)
from dist_embed.vectors.file import VectorFileError

_BUFFER_BYTES = 2**20


def open_stream(uri: str, *, read_ahead: bool = True) -> IO[bytes]:
    """What a file holds; can jump where it is not compressed. Raises VectorFileError.

    Without ``read_ahead`` just what is asked for is fetched: for readers of large blocks that skip
    others.
    """
    try:
        if is_compressed(uri):
            return open_decompressed(uri)
        return storage.open_file(uri, read_ahead=read_ahead)
    except OPEN_ERRORS as exc:
        reason = "no such file" if isinstance(exc, FileNotFoundError) else exc
        raise VectorFileError(f"cannot read {uri}: {reason}") from exc


def read_up_to(file: IO[bytes], count: int, uri: str) -> bytes:
    """The next ``count`` bytes; fewer only where the file ends. Raises VectorFileError."""
    parts = []
    try:
        while count > 0 and (data := file.read(min(count, 2**24))):
            parts.append(data)
            count -= len(data)
    except READ_ERRORS as exc:
        raise VectorFileError(f"cannot read {uri}: {exc}") from exc
    return b"".join(parts)


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


def go_to(file: IO[bytes], at: int, wanted: int, uri: str) -> None:
    """Move from byte ``at`` on to ``wanted``; a compressed file is read up to there.

    Raises VectorFileError.
    """
    if not is_compressed(uri):
        file.seek(wanted)
        return
    while at < wanted:
        data = read_up_to(file, min(wanted - at, 2**24), uri)
        if not data:
            raise VectorFileError(f"{uri}: ends before byte {wanted}")
        at += len(data)

"""Vectors in the binary form of the word2vec tool: a header line, then for each word its bytes, a
space and the vector's little-endian float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dist_embed.vectors.file import BLOCK_BYTES, HeldStretch, VectorFileError, decode_word
from dist_embed.vectors.stream import open_stream, read_up_to
from dist_embed.vectors.text import parse_header

_MAX_WORD_BYTES = 4096
_MAX_WIDTH = 2**16


class Word2VecBinary:
    """A binary file of vectors; see `dist_embed.vectors.file.VectorFile`.

    Where an entry begins is known only once the word before it has been read: every worker reads
    the whole file and copies its own part out.

    Args:
        uri: the file, a local path or URL; decompressed by its ending.

    Raises:
        VectorFileError: the file cannot be read or has no header.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with _Bytes(uri) as data:
            stated = parse_header(data.line())
        if stated is None or not 0 < stated[1] <= _MAX_WIDTH:
            raise VectorFileError(
                f"{uri}, line 1: expected the number of words and the width (up to {_MAX_WIDTH:,}) "
                "in digits"
            )
        self.num_stated: int | None
        self.num_stated, self.width = stated

    def stretches(self, part: int, num_parts: int) -> Iterator[HeldStretch]:
        """See `VectorFile.stretches`: every ``num_parts``-th group of entries."""
        assert self.num_stated is not None
        size = 4 * self.width
        group = max(1, BLOCK_BYTES // size)
        with _Bytes(self.uri) as data:
            data.line()
            for first in range(0, self.num_stated, group):
                count = min(group, self.num_stated - first)
                words: list[str] = []
                mine = (first // group) % num_parts == part
                values = np.empty((count if mine else 0, self.width), dtype="<f4")
                for place in range(count):
                    where = f"{self.uri}, entry {first + place + 1}"
                    word = data.until_space(where, self.num_stated)
                    vector = data.take(size, where, self.num_stated)
                    if mine:
                        # The tool ends each vector with a line end, which others leave out.
                        words.append(decode_word(word.lstrip(b"\n"), where))
                        values[place] = np.frombuffer(vector, dtype="<f4")
                if mine:
                    yield HeldStretch(self.uri, first, words, values)
            if data.rest().strip(b"\n"):
                raise VectorFileError(
                    f"{self.uri}: the header promises {self.num_stated:,} vectors of width "
                    f"{self.width}, the file goes on behind them"
                )


class _Bytes:
    """A file read forwards through a buffer."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._data = b""
        self._at = 0
        self._file = open_stream(uri)

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def line(self) -> bytes:
        """The bytes up to the first line end."""
        self._need(_MAX_WORD_BYTES)
        end = self._data.find(b"\n", 0, _MAX_WORD_BYTES)
        if end < 0:
            return b""
        self._at = end + 1
        return self._data[:end]

    def until_space(self, where: str, num_stated: int) -> bytes:
        """The bytes up to the next space, which is passed."""
        end = self._data.find(b" ", self._at, self._at + _MAX_WORD_BYTES)
        if end < 0:
            self._need(_MAX_WORD_BYTES)
            end = self._data.find(b" ", self._at, self._at + _MAX_WORD_BYTES)
            if end < 0:
                raise self._broken(where, num_stated)
        word = self._data[self._at : end]
        self._at = end + 1
        return word

    def take(self, count: int, where: str, num_stated: int) -> bytes:
        """The next ``count`` bytes."""
        if len(self._data) - self._at < count:
            self._need(count)
            if len(self._data) - self._at < count:
                raise self._broken(where, num_stated)
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        """What follows, as far as it has been looked at."""
        self._need(_MAX_WORD_BYTES)
        return self._data[self._at :]

    def _need(self, count: int) -> None:
        rest = self._data[self._at :]
        if len(rest) < count:
            rest += read_up_to(self._file, max(count, BLOCK_BYTES), self._uri)
        self._data, self._at = rest, 0

    def _broken(self, where: str, num_stated: int) -> VectorFileError:
        if len(self._data) - self._at < _MAX_WORD_BYTES:
            return VectorFileError(
                f"{where}: the file ends before it; the header promises {num_stated:,}"
            )
        return VectorFileError(f"{where}: no word found; the width in the header may be wrong")

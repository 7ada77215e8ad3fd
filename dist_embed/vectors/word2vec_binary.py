"""Vectors in the binary form of the word2vec tool: a header line, then for each word its bytes, a
space and the vector's little-endian float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from dist_embed.vectors.file import BLOCK_BYTES, MAX_WIDTH, HeldSegment, VectorFileError, readable
from dist_embed.vectors.stream import Forward
from dist_embed.vectors.text import parse_header

_MAX_WORD_BYTES = 4096
# What values are not, but bytes of two neighbours that are taken for one.
_WILD = 1e20
# Whole values that may be the rest of a word, the last with its blank: about 1e-19.
_REST = re.compile(rb"(?:[ -~\x80-\xff]{4})*?[ -~\x80-\xff]{3} ")


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
        with Forward(uri) as data:
            stated = parse_header(data.until(b"\n", _MAX_WORD_BYTES) or b"")
        if stated is None or not 0 < stated[1] <= MAX_WIDTH:
            raise VectorFileError(
                f"{uri}, line 1: expected the number of words and the width (up to {MAX_WIDTH:,}) "
                "in digits"
            )
        self.num_stated: int | None
        self.num_stated, self.width = stated
        self.doubt: str | None = None

    def segments(self, part: int, num_parts: int) -> Iterator[HeldSegment]:
        """See `VectorFile.segments`: every ``num_parts``-th group of entries."""
        assert self.num_stated is not None
        size = 4 * self.width
        group = max(1, BLOCK_BYTES // size)
        on_lines = follows_rest = False
        with Forward(self.uri) as data:
            data.until(b"\n", _MAX_WORD_BYTES)
            for first in range(0, self.num_stated, group):
                count = min(group, self.num_stated - first)
                words: list[str] = []
                mine = (first // group) % num_parts == part
                values = np.empty((count if mine else 0, self.width), dtype="<f4")
                for place in range(count):
                    raw = data.until(b" ", _MAX_WORD_BYTES)
                    if raw is None:
                        raise self._no_word(data, first + place)
                    vector = data.take(size)
                    if len(vector) < size:
                        raise self._ends_before(first + place)
                    # The tool ends each vector with a line end, which others leave out.
                    word = raw.lstrip(b"\n")
                    on_lines = on_lines or len(word) < len(raw)
                    text = readable(word)
                    if b"\n" in word or (b"\0" in word and not text):
                        raise self._out_of_step(first + place)
                    # Where values stay whole, the last of them are taken for the next word.
                    if follows_rest and not on_lines and not (text and text.isprintable()):
                        raise self._out_of_step(first + place - 1)
                    rest = _REST.match(vector)
                    follows_rest = rest is not None and readable(rest[0]) != ""
                    if mine:
                        words.append(text)
                        values[place] = np.frombuffer(vector, dtype="<f4")
                if not on_lines and self.num_stated > 1:  # hardly anything else tells
                    sizes = np.abs(values)
                    wild = ((sizes > _WILD) & (sizes < np.inf)).any(1)
                    if wild.any():
                        raise self._out_of_step(first + int(wild.argmax()))
                if mine:
                    yield HeldSegment(self.uri, first, words, values)
            if data.take(_MAX_WORD_BYTES).strip(b"\n"):
                raise VectorFileError(
                    f"{self.uri}: the header promises {self.num_stated:,} vectors of width "
                    f"{self.width}, the file goes on behind them"
                )

    def _no_word(self, data: Forward, number: int) -> VectorFileError:
        if data.ahead(_MAX_WORD_BYTES) < _MAX_WORD_BYTES:
            return self._ends_before(number)
        return VectorFileError(
            f"{self.uri}, entry {number + 1}: no word found; the width in the header may be wrong"
        )

    def _ends_before(self, number: int) -> VectorFileError:
        return VectorFileError(
            f"{self.uri}, entry {number + 1}: the file ends before it; the header promises "
            f"{self.num_stated:,}"
        )

    def _out_of_step(self, number: int) -> VectorFileError:
        return VectorFileError(
            f"{self.uri}, entry {number + 1}: is no word and vector; the width in the header is "
            "wrong, or the word of this or an earlier entry has a blank, which this form cannot "
            "tell from its end: write such vectors as text or Parquet"
        )

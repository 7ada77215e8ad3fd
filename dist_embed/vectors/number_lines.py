"""Vectors as lines of numbers alone, beside a list of words: TensorBoard's projector has
``vectors.tsv`` and ``metadata.tsv``, and numpy's ``savetxt`` writes such lines too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from dist_embed.vectors.file import (
    BLOCK_BYTES,
    HeldSegment,
    VectorFileError,
    Vectors,
)
from dist_embed.vectors.stream import lines_of, open_stream
from dist_embed.vectors.text import parse_numbers
from dist_embed.vectors.word_list import WordsOfRows, words_of


class NumberLines:
    """Lines of numbers and a list of words; see `dist_embed.vectors.file.VectorFile`.

    Which line is a row's is known only by counting: every worker reads both files through, and
    parses its own part.

    Args:
        uri: the numbers, parted by tabs or spaces.
        words_uri: the words, one a line; or in the first column of lines with tabs, the first of
            which has the columns' names, as the projector has it.

    Raises:
        VectorFileError: a file cannot be read, or begins with no numbers.
    """

    def __init__(self, uri: str, words_uri: str) -> None:
        self.uri, self._words_uri = uri, words_uri
        self.num_stated: int | None = None
        self.doubt: str | None = None
        first = next(self._lines(), b"")
        self.width = len(first.split())
        try:
            parse_numbers([b" ".join(first.split())], self.width)
        except pa.ArrowInvalid:
            self.width = 0
        if not self.width:
            raise VectorFileError(
                f"{uri}: expected lines of numbers, found {first[:80].decode(errors='replace')!r}"
            )
        with open_stream(words_uri):  # told before anything is read
            pass

    def segments(self, part: int, num_parts: int) -> Iterator[HeldSegment]:
        """See `VectorFile.segments`: every ``num_parts``-th group of lines."""
        lines, group = self._lines(), max(1, BLOCK_BYTES // (16 * self.width))
        first = number = 0
        with open_stream(self._words_uri) as list_file:
            listed = words_of(list_file, self._words_uri, columns=True)
            words = WordsOfRows(listed, self._words_uri, self.uri)
            while some := list(islice(lines, group)):
                names = words.take(len(some))
                if number % num_parts == part:
                    values = self._parsed(some, first)[: len(names)]
                    yield HeldSegment(self.uri, first, names, values)
                first += len(some)
                number += 1
            words.end()
            self.doubt = words.doubt

    def _parsed(self, lines: list[bytes], first: int) -> Vectors:
        rows = [line.split() for line in lines]
        for place, row in enumerate(rows):
            if len(row) != self.width:
                raise VectorFileError(
                    f"{self.uri}, row {first + place + 1}: {len(row)} numbers, the width is "
                    f"{self.width}"
                )
        try:
            return parse_numbers([b" ".join(row) for row in rows], self.width)
        except pa.ArrowInvalid as exc:
            raise VectorFileError(
                f"{self.uri}, rows {first + 1} to {first + len(rows)}: {exc}"
            ) from exc

    def _lines(self) -> Iterator[bytes]:
        """Those that are not empty."""
        with open_stream(self.uri) as file:
            yield from filter(None, map(bytes.strip, lines_of(file, self.uri)))

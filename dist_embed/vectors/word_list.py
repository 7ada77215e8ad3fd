"""Lists of words: many in one buffer; and the words, one a line, that belong to the rows of a
matrix.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import IO

from dist_embed.observe.events import printable
from dist_embed.vectors.file import VectorFileError, readable
from dist_embed.vectors.stream import lines_of

# The names of columns under which words are as `as_cell` writes them.
COUNTED = "word\tcount"
_ESCAPED = re.compile(r"\\(?:[\\tnr]|x(?:[0189][0-9a-f]|7f)|u202[89])")


class WordList:
    """Words in the order in which they were added. As Python strings a million take over 60 MB."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return self._text[self._ends[place] : self._ends[place + 1]].decode()

    def append(self, word: str) -> None:
        """Add one."""
        self._text += word.encode()
        self._ends.append(len(self._text))

    def part(self, first: int, end: int) -> list[str]:
        """The words from number ``first`` up to ``end``, or to the last."""
        return [self[place] for place in range(first, min(end, len(self)))]


def as_cell(word: str) -> str:
    """A word as a cell of a table on one line; `words_of` gives it back."""
    return printable(word.replace("\\", r"\\"))


def _from_cell(text: str) -> str:
    return _ESCAPED.sub(lambda found: found[0].encode().decode("unicode_escape"), text)


def words_of(file: IO[bytes], uri: str, *, columns: bool = False) -> Iterator[str]:
    """The words of a list, as `Segment.words` has them: an empty line is an empty word, whose row
    belongs to none.

    Args:
        file: the list.
        uri: where it lies, for messages.
        columns: whether lines with tabs are columns, the words the first, under a line of names;
            under `COUNTED` they are as `as_cell` writes them.

    Raises VectorFileError where it cannot be read.
    """
    in_columns, are_cells = False, False
    for number, line in enumerate(lines_of(file, uri)):
        word = line.rstrip(b"\r\n")
        if columns and not number and b"\t" in word:
            in_columns, are_cells = True, word == COUNTED.encode()
            continue
        text = readable(word.partition(b"\t")[0] if in_columns else word)
        yield _from_cell(text) if are_cells else text


class WordsOfRows:
    """The words of a list, given to the rows of a matrix in their order.

    One word more or less than rows is taken, and told: nobody can say here whether it is the last
    that is too many, or a first line that is none. A list that is further off is not of this
    matrix.

    Args:
        words: the list's.
        uri: where it lies, for messages.
        rows_uri: the matrix's, for messages.

    Attributes:
        doubt: after `end`, what somebody should look at; None where each row has its word.
    """

    def __init__(self, words: Iterator[str], uri: str, rows_uri: str) -> None:
        self.doubt: str | None = None
        self._words = words
        self._uri = uri
        self._rows_uri = rows_uri
        self._num_rows = self._num_words = 0

    def take(self, count: int) -> list[str]:
        """The words of the next ``count`` rows, the very last perhaps without one. Raises
        VectorFileError.
        """
        found = list(islice(self._words, count))
        self._num_rows += count
        self._num_words += len(found)
        if self._num_words < self._num_rows - 1:
            raise self._differ(f"{self._num_words:,} words, but {self._rows_uri} has more rows")
        return found

    def end(self) -> None:
        """After the last row. Empty lines behind its word do not count. Raises VectorFileError."""
        surplus = 0
        for number, word in enumerate(self._words, start=1):
            if word:
                surplus = number
            if surplus > 1:
                raise self._differ(
                    f"more words than the {self._num_rows:,} rows of {self._rows_uri}"
                )
        if surplus or self._num_words < self._num_rows:
            more, last = ("more", "word") if surplus else ("less", "row")
            self.doubt = (
                f"{self._uri} has one word {more} than {self._rows_uri} has rows "
                f"({self._num_rows:,}); they were taken in order, so the last {last} was left out: "
                "if it is another that has to be, all words behind it have their neighbours' rows"
            )

    def _differ(self, what: str) -> VectorFileError:
        return VectorFileError(f"{self._uri}: {what}; they may differ by one")

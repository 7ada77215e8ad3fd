"""Lists of words: many in one buffer; and the words, one a line, that belong to the rows of a
matrix.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
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


def words_of(
    file: IO[bytes], uri: str, *, most: int | None = None, columns: bool = False
) -> Iterator[str]:
    """The words of a list, as `Segment.words` has them: an empty line is an empty word, whose row
    belongs to none.

    Args:
        file: the list.
        uri: where it lies, for messages.
        most: how many rows there are; empty lines behind them do not count.
        columns: whether lines with tabs are columns, the words the first, under a line of names;
            under `COUNTED` they are as `as_cell` writes them.

    Raises:
        VectorFileError: it cannot be read, or has more words than ``most``.
    """
    given, in_columns, are_cells = 0, False, False
    for number, line in enumerate(lines_of(file, uri)):
        word = line.rstrip(b"\r\n")
        if columns and not number and b"\t" in word:
            in_columns, are_cells = True, word == COUNTED.encode()
            continue
        if given != most:
            given += 1
            text = readable(word.partition(b"\t")[0] if in_columns else word)
            yield _from_cell(text) if are_cells else text
        elif word:
            raise VectorFileError(f"{uri}: more words than the {most:,} rows beside it")

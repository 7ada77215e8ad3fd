"""What every file of word vectors offers: its words in order, and the vectors of chosen ones.

A file is read by several workers at once. Each takes its own part of it, in segments that fit
into memory many times over; together they see every entry once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dist_embed.errors import UserError

Vectors = NDArray[np.float32]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows' editors begin a text with it
# Read at once; the memory of a segment is a few times as much.
BLOCK_BYTES = 4 * 2**20
LONGEST_LINE = 2**24  # bytes, of a text
MAX_WIDTH = 2**16  # that a header may state


class VectorFileError(UserError):
    """A file of word vectors cannot be used; the message names the file and the place in it."""


class Segment(Protocol):
    """Some consecutive entries.

    Attributes:
        origin: a number that is higher than that of every entry before this segment. Entry i of it
            has ``origin + i``; so the numbers of all entries are in the file's order.
        words: the word of each entry; empty where it is none, or not UTF-8: nothing is written like
            that, so the entry is passed over.
    """

    @property
    def origin(self) -> int: ...
    @property
    def words(self) -> list[str]: ...

    def vectors(self, chosen: Sequence[int]) -> Vectors:
        """The vectors of the entries ``chosen``, ascending: [n, D], finite.

        Raises:
            VectorFileError: an entry is no vector of the file's width, or not finite.
        """


class VectorFile(Protocol):
    """A file of word vectors.

    Attributes:
        uri: where it lies.
        width: D.
        num_stated: how many entries its header promises; None without one. Text may hold others:
            several tools write wrong numbers.
        doubt: what somebody should look at, known when a part was read; None where nothing is.
    """

    uri: str
    width: int
    num_stated: int | None
    doubt: str | None

    def segments(self, part: int, num_parts: int) -> Iterator[Segment]:
        """The entries of one of ``num_parts`` parts, in the file's order.

        Raises:
            VectorFileError: the file is damaged or cannot be read.
        """


@dataclass(frozen=True)
class HeldSegment:
    """A segment whose vectors are in memory already.

    Attributes:
        uri: the file, for messages.
        origin: the number of the first entry, from 0.
        words: see `Segment`.
        values: [n, D].
    """

    uri: str
    origin: int
    words: list[str]
    values: NDArray[np.floating]

    def vectors(self, chosen: Sequence[int]) -> Vectors:
        """See `Segment.vectors`."""
        found = self.values[np.asarray(chosen, dtype=np.int64)].astype(np.float32)
        wrong = ~np.isfinite(found).all(1)
        if wrong.any():
            place = chosen[int(wrong.argmax())]
            raise VectorFileError(
                f"{self.uri}, entry {self.origin + place + 1} ({self.words[place]!r}): a value is "
                "not finite"
            )
        return found


def readable(raw: bytes) -> str:
    """A word's bytes as text; empty where they are not UTF-8, as `Segment.words` has it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""

"""Vectors as text: one line for each word, ``word number number …``.

The word2vec tool and fastText (``.vec``) write a first line with the number of words and the
width; GloVe writes none. Words may contain blanks: numbers are what a line ends with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dist_embed.storage.first_bytes import no_text
from dist_embed.vectors.file import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    LONGEST_LINE,
    MAX_WIDTH,
    VectorFileError,
    Vectors,
    readable,
)
from dist_embed.vectors.stream import is_packed, open_stream, read_up_to, too_long

# Lines that tell the width where no header does, and what parts word and numbers.
_SAMPLE_LINES = 1000
_SPACES = b" \t\r"
# Read with a block, to have the end of its last line.
_TAIL_BYTES = 2**16


class TextVectors:
    """A text file of vectors; see `dist_embed.vectors.file.VectorFile`.

    Args:
        uri: the file, a local path or URL; decompressed by its ending.
        has_header: whether the first line gives number and width.

    Attributes:
        may_be_counts: whether it can as well be a list of words with their counts or scores: one
            number for each word, and no header, or what may be a word and its count.

    Raises:
        VectorFileError: the file is empty, cannot be read, or its first lines are no vectors.
    """

    def __init__(self, uri: str, *, has_header: bool) -> None:
        self.uri = uri
        self._packed = is_packed(uri)
        self.num_stated: int | None = None
        self.doubt: str | None = None
        with open_stream(self.uri, read_ahead=False) as file:
            head = read_up_to(file, BLOCK_BYTES, uri)
        self._first_byte = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
        head = head[self._first_byte :]
        if not head.strip():
            raise VectorFileError(f"{uri}: is empty")
        if what := no_text(head):
            raise VectorFileError(f"{uri}: {what}")
        if has_header:
            first, end, _ = head.partition(b"\n")
            stated = parse_header(first)
            if stated is None or not 0 < stated[1] <= MAX_WIDTH:
                raise VectorFileError(
                    f"{uri}, line 1: expected the number of words and the width (up to "
                    f"{MAX_WIDTH:,}), found {first[:80].decode(errors='replace')!r}"
                )
            self.num_stated, self.width = stated
            self._first_byte += len(first) + len(end)
            head = head[len(first) + len(end) :]
            if not head.strip():
                raise VectorFileError(f"{uri}: holds no vectors, but a header")
        lines = _first_lines(head)
        # Else a tab is part of a word.
        self._tab_ends_word = 2 * sum(b"\t" in line for line in lines) > len(lines)
        if not has_header:
            self.width = _usual_width(lines, self._tab_ends_word, uri)
            self.may_be_counts = self.width == 1
            return
        are_whole = all(text.isdigit() for line in lines for text in line.split()[-1:])
        self.may_be_counts = self.width == 1 and are_whole
        first_line = self._segment(self._first_byte, head.partition(b"\n")[0])
        if not all(are_numbers(text.split()) for text in first_line.numbers):
            raise first_line.first_mistake([0])

    def segments(self, part: int, num_parts: int) -> Iterator[_TextSegment]:
        """See `VectorFile.segments`: every ``num_parts``-th block of lines.

        A compressed file is decompressed by everyone; of others each reads only its part.
        """
        blocks = self._all_blocks if self._packed else self._own_blocks
        for offset, block in blocks(part, num_parts):
            skipped = max(0, self._first_byte - offset)
            yield self._segment(offset + skipped, block[skipped:])

    def _all_blocks(self, part: int, num_parts: int) -> Iterator[tuple[int, bytes]]:
        offset = number = 0
        rest = b""
        with open_stream(self.uri) as file:
            while data := read_up_to(file, BLOCK_BYTES, self.uri):
                cut = data.rfind(b"\n") + 1
                if not cut:
                    rest += data
                    self._check_line(len(rest), offset)
                    continue
                if number % num_parts == part:
                    yield offset, rest + data[:cut]
                offset += len(rest) + cut
                rest = data[cut:]
                number += 1
        if rest and number % num_parts == part:
            yield offset, rest

    def _own_blocks(self, part: int, num_parts: int) -> Iterator[tuple[int, bytes]]:
        """A line belongs to the block in which it begins."""
        with open_stream(self.uri, read_ahead=False) as file:
            size = file.seek(0, 2)
            for begin in range(part * BLOCK_BYTES, size, num_parts * BLOCK_BYTES):
                # The byte before tells whether a line begins with the block.
                before = 1 if begin else 0
                file.seek(begin - before)
                inside = before + BLOCK_BYTES
                data = read_up_to(file, inside + _TAIL_BYTES, self.uri)
                skipped = data.find(b"\n", 0, inside) + 1 if before else 0
                if before and not skipped:
                    continue
                last = data.rfind(b"\n", 0, inside - 1) + 1
                while not (end := data.find(b"\n", inside - 1) + 1) and (
                    more := read_up_to(file, _TAIL_BYTES, self.uri)
                ):
                    self._check_line(len(data) - last, begin - before + last)
                    data += more
                if (end or len(data)) > skipped:
                    yield begin - before + skipped, data[skipped : end or None]

    def _check_line(self, size: int, offset: int) -> None:
        if size > LONGEST_LINE:
            raise too_long(self._place(offset, 0))

    def _segment(self, offset: int, block: bytes) -> _TextSegment:
        found = _TextSegment(self, offset)
        width, words, numbers = self.width, found.words, found.numbers
        for number, line in enumerate(block.split(b"\n")):
            line = line.rstrip(_SPACES)
            if not line:  # also what follows the last line's end
                found.empty.append(len(words))
                continue
            word, _, rest = line.partition(b" ")
            tab = b"\t" in (line if self._tab_ends_word else rest)
            if tab or line.count(b" ") != width:
                word, rest = self._unusual(line, offset, number)
            words.append(readable(word))
            numbers.append(rest)
        return found

    def _unusual(self, line: bytes, offset: int, number: int) -> tuple[bytes, bytes]:
        """Word and numbers of a line that has not one space before each number.

        Where all parts of a word but the first are numbers, the line may as well have too many,
        and is refused; unless tabs tell: before all numbers, or before the first and nowhere else.
        """
        word, *numbers = line.rsplit(None, self.width)
        if len(numbers) < self.width and line[:1] in _SPACES and are_numbers([word, *numbers]):
            word, numbers = b"", [word, *numbers]  # no word, as at the beginning of the line
        more, behind = word.split()[1:], line[len(word) :].lstrip(b" ")
        tab_decides = (
            behind.startswith(b"\t")
            and b"\t" not in word
            and (behind.count(b"\t") == self.width or b"\t" not in behind.lstrip(_SPACES))
        )
        too_many = bool(more) and are_numbers(more) and not tab_decides
        if len(numbers) == self.width and not too_many:
            return word.strip(_SPACES), b" ".join(numbers)
        there = max(0, len(line.split()) - 1)
        raise VectorFileError(
            f"{self._place(offset, number)}: {there} numbers, the width is {self.width}"
            + ("" if there > 0 else f" (the line is {line[:80].decode(errors='replace')!r})")
        )

    def _place(self, offset: int, number: int) -> str:
        return f"{self.uri}, line {self._line_at(offset) + number}"

    def _line_at(self, offset: int) -> int:
        """The number of the line that begins at ``offset``; reads the file, for a message."""
        line = 1
        with open_stream(self.uri) as file:
            while offset > 0 and (data := read_up_to(file, min(offset, BLOCK_BYTES), self.uri)):
                line += data.count(b"\n")
                offset -= len(data)
        return line


@dataclass
class _TextSegment:
    """Lines, split but not parsed: only the numbers of chosen words are. No empty ones."""

    file: TextVectors
    origin: int  # a line is longer than a byte, so line i of it may have origin + i
    words: list[str] = field(default_factory=list)
    numbers: list[bytes] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)  # how many words stand before each empty line

    def place(self, entry: int) -> str:
        """File and line of an entry, for messages."""
        return self.file._place(self.origin, entry + bisect_right(self.empty, entry))

    def vectors(self, chosen: Sequence[int]) -> Vectors:
        """See `Segment.vectors`."""
        lines = [self.numbers[place] for place in chosen]
        try:
            found = parse_numbers(lines, self.file.width)
            if np.isfinite(found).all():
                return found
        except pa.ArrowInvalid:
            pass
        raise self.first_mistake(chosen)

    def first_mistake(self, chosen: Sequence[int]) -> VectorFileError:
        """What is wrong with the first of ``chosen`` that cannot be parsed."""
        for place in chosen:
            for text in self.numbers[place].split(b" "):
                problem = "is not a number"
                try:
                    if np.isfinite(np.float32(parse_numbers([text], 1)[0, 0])):
                        continue
                    problem = "is not finite"
                except pa.ArrowInvalid:
                    pass
                return VectorFileError(
                    f"{self.place(place)} ({self.words[place]!r}): "
                    f"{text[:40].decode(errors='replace')!r} {problem}"
                )
        return VectorFileError(f"{self.file.uri}: cannot be parsed near byte {self.origin}")


def parse_header(line: bytes) -> tuple[int, int] | None:
    """Number and width from a first line; None where it is none."""
    fields = line.split()
    if len(fields) != 2 or not all(text.isdigit() and len(text) < 19 for text in fields):
        return None
    return int(fields[0]), int(fields[1])


def parse_numbers(lines: list[bytes], width: int) -> Vectors:
    """[n, width] from lines of numbers, parted by one space each. Raises pa.ArrowInvalid."""
    if not lines:
        return np.empty((0, width), dtype=np.float32)
    # As fast as pyarrow's reader of CSV, which leaves a thread behind (see `storage.parquet`).
    numbers = pc.list_flatten(
        pc.split_pattern(pa.array([b" ".join(lines)], pa.large_string()), " ")
    )
    parsed: Vectors = numbers.cast(pa.float32()).to_numpy()
    return parsed.reshape(-1, width)


def _first_lines(head: bytes) -> list[bytes]:
    lines = head.split(b"\n")
    if len(lines) > 1:
        lines.pop()  # may be cut, or is what follows the last line's end
    return [text for line in lines[:_SAMPLE_LINES] if (text := line.rstrip(_SPACES))] or [head]


def _usual_width(lines: list[bytes], tab_ends_word: bool, uri: str) -> int:
    """How many numbers most of ``lines`` end with, behind the word."""
    counts: Counter[int] = Counter()
    for line in lines:
        fields = line.partition(b"\t")[2].split() if tab_ends_word else line.split()[1:]
        counts[len(list(takewhile(_is_number, reversed(fields))))] += 1
    width = counts.most_common(1)[0][0]
    if not width:
        raise VectorFileError(
            f"{uri}: expected lines of a word and numbers, found "
            f"{lines[0][:80].decode(errors='replace')!r}"
        )
    return width


def are_numbers(texts: list[bytes]) -> bool:
    """Whether each of ``texts`` is a number."""
    return all(map(_is_number, texts))


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

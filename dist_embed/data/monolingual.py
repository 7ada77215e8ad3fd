"""Text of one language as ids of its words: for models that read running text."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.corpus import expand
from dist_embed.data.text.lines import read_lines
from dist_embed.data.text.rows import too_long
from dist_embed.errors import UserError

_BLOCK_CHARACTERS = 4_000_000
# Some texts, text8 for one, are one line of 100 MB.
_LONGEST_LINE = 2**27
_WORDS_AT_ONCE = 10_000  # made strings of Python
_LEAST_ROWS = 1_000_000  # of counts that are summed at once
# The words of some lines, one after the other, and how many each line has.
Block = tuple[pa.Array, NDArray[np.int64]]


class Words(Sequence[str]):
    """Words by their ids: ``words[3]``, ``words.index("tree")``, ``words[10:20]`` as a list.

    Compared with other sequences, word by word. They are held by Arrow, whose strings take less
    memory than Python's; what looks for one goes through all.

    Attributes:
        array: the same as an array of Arrow, of which no item equals a text of Python.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            found: list[str] = self.array[place].to_pylist()
            return found
        word: str = self.array[operator.index(place)].as_py()
        return word

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _WORDS_AT_ONCE):
            yield from self[first : first + _WORDS_AT_ONCE]

    def __contains__(self, word: object) -> bool:
        return self._place(word, 0, len(self)) >= 0

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The id of a word. Raises ValueError: there is none."""
        begin, end, _ = slice(start, stop).indices(len(self))
        if (place := self._place(value, begin, end)) < 0:
            raise ValueError(f"{value!r} is not among the words")
        return place

    def _place(self, word: object, begin: int, end: int) -> int:
        if not isinstance(word, str) or begin >= end:
            return -1
        place: int = pc.index(self.array, word, begin, end).as_py()
        return place

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        more = ", …" if len(self) > 10 else ""
        return f"<{len(self):,} words: {', '.join(map(repr, self[:10]))}{more}>"


@dataclass(frozen=True)
class MonolingualText:
    """Running text whose words are those between blanks.

    Attributes:
        words: [V] those that are kept, most frequent first, equal counts by word: a word's place is
            its id.
        counts: [V] how often each occurs.
        ids: [N] int32, the kept words of the text in order; rarer ones are left out of it.
        line_ends: [L] int64: how many of ``ids`` are in the first line, the first two, …
    """

    words: Words
    counts: NDArray[np.int64]
    ids: NDArray[np.int32]
    line_ends: NDArray[np.int64]


def read_monolingual(
    *patterns: str, min_count: int = 5, max_line_bytes: int = _LONGEST_LINE
) -> MonolingualText:
    """Read files twice, first to count their words, then for the ids of those that are kept.

    Needs memory for the distinct words, and four bytes for every running word that is kept.

    Args:
        patterns: text files or globs, UTF-8; compressed ones are known by their endings.
        min_count: rarer words are left out.
        max_line_bytes: longer lines are refused; a line takes several times its size in memory.

    Raises:
        CorpusError: a file is missing or unreadable, or no UTF-8, or a line is too long.
        UserError: no word occurs so often.
    """
    found = _counted(patterns, max_line_bytes)
    kept = found.filter(pc.greater_equal(found["count"], min_count))
    if not len(kept):
        raise UserError(f"{', '.join(patterns)}: no word occurs {min_count} times or more")
    del found
    # Not Table.sort_by, which starts threads of Arrow.
    kept = kept.take(pc.sort_indices(kept, [("count", "descending"), ("word", "ascending")]))
    vocabulary = kept["word"].combine_chunks()
    pa.default_memory_pool().release_unused()  # Arrow would keep what counting took
    ids: list[NDArray[np.int32]] = []
    lengths: list[NDArray[np.int64]] = []
    # Arrow makes a hash table of the vocabulary for every call: it is to serve as many words.
    for words, words_of_line in _at_least(len(vocabulary), _blocks(patterns, max_line_bytes)):
        place = pc.index_in(words, vocabulary)
        is_kept = place.is_valid().to_numpy(zero_copy_only=False)
        ids.append(place.drop_null().to_numpy().astype(np.int32))
        # How many are kept up to each line's end, less those up to the end of the line before.
        reached = np.concatenate([[0], np.cumsum(is_kept)])[np.cumsum(words_of_line)]
        lengths.append(np.diff(reached, prepend=0))
    pa.default_memory_pool().release_unused()
    return MonolingualText(
        words=Words(vocabulary),
        counts=kept["count"].to_numpy().astype(np.int64),
        ids=np.concatenate(ids),
        line_ends=np.cumsum(np.concatenate(lengths)),
    )


def _counted(patterns: tuple[str, ...], longest: int) -> pa.Table:
    """The distinct words and how often each occurs; of Arrow, whose strings take less memory than
    Python's.
    """
    parts: list[pa.Table] = []
    for words, _ in _blocks(patterns, longest):
        found = pc.value_counts(words)
        parts.append(pa.table([found.field(0), found.field(1)], ["word", "count"]))
        # So that a word is summed anew a few times only, however long the text is.
        if sum(map(len, parts[1:])) > max(len(parts[0]), _LEAST_ROWS):
            parts = [_summed(parts)]
    return _summed(parts)


def _summed(parts: list[pa.Table]) -> pa.Table:
    # One thread: each has a table of the words of its own.
    groups = pa.concat_tables(parts).group_by("word", use_threads=False)
    return groups.aggregate([("count", "sum")]).rename_columns(["word", "count"])


def _at_least(count: int, blocks: Iterator[Block]) -> Iterator[Block]:
    """Some blocks as one that has ``count`` words; the last one may have fewer."""
    some: list[Block] = []
    words = 0
    for block in blocks:
        some.append(block)
        words += len(block[0])
        if words >= count:
            yield _joined(some)
            some, words = [], 0
    if some:
        yield _joined(some)


def _joined(blocks: list[Block]) -> Block:
    words, lengths = zip(*blocks, strict=True)
    return pa.concat_arrays(words), np.concatenate(lengths)


def _blocks(patterns: tuple[str, ...], longest: int) -> Iterator[Block]:
    lines: list[str] = []
    characters = 0
    for uri in expand(patterns):
        for line in read_lines(uri, limit=longest, beyond=too_long(longest)):
            lines.append(line)
            characters += len(line)
            if characters >= _BLOCK_CHARACTERS:
                yield _split(lines)
                lines, characters = [], 0
    yield _split(lines)


def _split(lines: list[str]) -> Block:
    # Blanks at its ends would give a line empty words; and the only word of an empty line is one.
    # Large: the letters of a vocabulary may be more than 2^31.
    trimmed = pc.utf8_trim_whitespace(pa.array(lines, pa.large_string()))
    split = pc.utf8_split_whitespace(trimmed)
    words, lengths = pc.list_flatten(split), pc.list_value_length(split).to_numpy()
    is_empty = pc.equal(trimmed, "").to_numpy(zero_copy_only=False)
    return words.filter(pc.not_equal(words, "")), np.where(is_empty, 0, lengths).astype(np.int64)

"""fastText's binary models (``.bin``): vectors of words and of the character n-grams in them.

A word's vector is the mean of its own row, where the model lists it, and of the rows of its
n-grams, which are hashed into buckets; so words that the model does not list have vectors too
(Bojanowski et al. 2017, arXiv 1607.04606).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_embed.vectors.file import BLOCK_BYTES, MAX_WIDTH, VectorFileError, Vectors, readable
from dist_embed.vectors.stream import Forward, go_to, is_packed, open_stream, read_up_to
from dist_embed.vectors.word_list import WordList

MAGIC = struct.pack("<i", 793712314)
_VERSION = 12
_END_OF_SENTENCE = "</s>"  # fastText gives it no n-grams
_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_MAX_WORD_BYTES = 2**16
_ROW_SHIFT = 32
_COPIED_ROWS = 2**13  # of the matrix, at once


class FastTextBinary:
    """A fastText model.

    Args:
        uri: the file, a local path or URL; decompressed by its ending.

    Attributes:
        uri: the file.
        width: D.
        words: what the model lists, in its order.
        unreadable: how many of them are not UTF-8. Models that fastText's authors publish have a
            few, and cannot be mended by hand; no word of a text is written like one.

    Raises:
        VectorFileError: no such model, one that is quantised, or one that ends too early.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._packed = is_packed(uri)
        with Forward(uri) as self._file:
            self._header()
            self._dictionary()
            quantised = self._unpack("<?")[0]
            if quantised:
                raise VectorFileError(f"{uri}: is quantised; give the model it was made of")
            rows, width = self._unpack("<qq")
        if (rows, width) != (len(self.words) + self._num_buckets, self.width):
            raise VectorFileError(
                f"{uri}: a matrix of {rows:,} × {width:,} does not fit {len(self.words):,} words, "
                f"{self._num_buckets:,} buckets and width {self.width}"
            )
        self._num_rows, self._first_byte = rows, self._file.at
        self._check_end()

    def parts_of(
        self, words: Sequence[str], listed: NDArray[np.int64], first: int
    ) -> NDArray[np.int64]:
        """The matrix rows that make up ``words``, of which word i is to be called ``first + i``.

        Args:
            words: n of them; an empty one has no parts.
            listed: [n] each one's place in the model's list, or -1.
            first: see above.

        Returns numbers to be sorted and given to `vectors_of`: row × 2³² + word.
        """
        grams, of_word = self._grams(words)
        own = (listed >= 0).nonzero()[0]
        rows = np.concatenate([listed[own], grams])
        return (rows << _ROW_SHIFT) + first + np.concatenate([own, of_word])

    def vectors_of(self, parts: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
        """The vectors of ``parts``, ascending, in one pass over the file: (words [n], [n, D]).

        A word comes as often as it has parts. Raises VectorFileError.
        """
        per_row = 4 * self.width
        group = max(1, BLOCK_BYTES // per_row)
        at = 0
        with open_stream(self.uri) as file:
            for first in range(0, self._num_rows, group):
                begin, end = np.searchsorted(
                    parts, (first << _ROW_SHIFT, (first + group) << _ROW_SHIFT)
                ).tolist()
                if begin == end:
                    continue
                count = min(group, self._num_rows - first)
                wanted = self._first_byte + first * per_row
                go_to(file, at, wanted, self.uri, packed=self._packed)
                data = read_up_to(file, count * per_row, self.uri)
                at = wanted + len(data)
                if len(data) < count * per_row:
                    raise VectorFileError(
                        f"{self.uri}: ends before row {first + count:,} of {self._num_rows:,}"
                    )
                values = np.frombuffer(data, dtype="<f4").reshape(count, self.width)
                for some in range(begin, end, _COPIED_ROWS):
                    chosen = parts[some : min(some + _COPIED_ROWS, end)]
                    rows = chosen >> _ROW_SHIFT
                    vectors = values[rows - first]
                    finite = np.isfinite(vectors).all(1)
                    if not finite.all():
                        raise VectorFileError(
                            f"{self.uri}, matrix row {rows[int(finite.argmin())] + 1}: a value is "
                            "not finite"
                        )
                    yield chosen & (2**_ROW_SHIFT - 1), vectors

    def _header(self) -> None:
        if self._take(4) != MAGIC:
            raise VectorFileError(f"{self.uri}: not a fastText model")
        (version,) = self._unpack("<i")
        if version != _VERSION:
            raise VectorFileError(
                f"{self.uri}: version {version} of the format is not known, {_VERSION} is"
            )
        *settings, threshold = self._unpack("<12id")
        # floret has two whole numbers before it, which read as such a one (args.cc at 2c19d15).
        if 0 < threshold < sys.float_info.min:
            raise VectorFileError(
                f"{self.uri}: is a model of floret, which is not read; give the .vec file that "
                "floret writes beside it"
            )
        self.width, self._num_buckets = settings[0], settings[8]
        self._shortest, self._longest = settings[9], settings[10]
        if not (0 < self.width <= MAX_WIDTH and self._num_buckets >= 0):
            raise VectorFileError(
                f"{self.uri}: width {self.width} with {self._num_buckets} buckets is no model"
            )

    def _dictionary(self) -> None:
        size, num_words, _, _, num_pruned = self._unpack("<iiiqq")
        self.words, self.unreadable = WordList(), 0
        for number in range(size):
            where = f"{self.uri}, entry {number + 1}"
            raw = self._file.until(b"\0", _MAX_WORD_BYTES)
            if raw is None:
                raise VectorFileError(f"{where}: no end of the word found")
            _, kind = self._unpack("<qb")
            if kind:  # a label
                continue
            if not raw:
                raise VectorFileError(f"{where}: no word")
            self.unreadable += not readable(raw)
            self.words.append(raw.decode(errors="backslashreplace"))
        if self.unreadable and self.unreadable == len(self.words):
            raise VectorFileError(f"{self.uri}: none of its words is valid UTF-8")
        if len(self.words) != num_words or num_words < 0:
            raise VectorFileError(
                f"{self.uri}: promises {num_words:,} words, lists {len(self.words):,}"
            )
        if num_pruned > 0:
            raise VectorFileError(f"{self.uri}: is pruned; give the model it was made of")

    def _check_end(self) -> None:
        """That the file holds its matrices; a compressed one tells by itself where it is cut."""
        if self._packed:
            return
        with open_stream(self.uri) as file:
            end = self._first_byte + self._num_rows * 4 * self.width
            size = file.seek(0, 2)
            if size > end:  # the output layer's matrix follows
                file.seek(end)
                head = read_up_to(file, 17, self.uri)
                if len(head) == 17:
                    _, rows, width = struct.unpack("<?qq", head)
                    end += 17 + 4 * rows * width
            if size < end:
                raise VectorFileError(f"{self.uri}: ends at byte {size:,} of {end:,}")

    def _grams(self, words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Matrix rows of all n-grams of ``words``, and which word each belongs to."""
        if not self._num_buckets or self._longest < 1:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        without = ("", _END_OF_SENTENCE)
        wrapped = [b"" if word in without else b"<%b>" % word.encode() for word in words]
        hashes, of_word = gram_hashes(wrapped, self._shortest, self._longest)
        return hashes % self._num_buckets + len(self.words), of_word

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        data = self._take(struct.calcsize(layout))
        return struct.unpack(layout, data)

    def _take(self, count: int) -> bytes:
        data = self._file.take(count)
        if len(data) < count:
            raise VectorFileError(f"{self.uri}: ends at byte {self._file.at:,}")
        return data


def gram_hashes(
    words: Sequence[bytes], shortest: int, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hashes of the character n-grams of ``words``, which stand between ``<`` and ``>``.

    FNV-1a of 32 bits as fastText computes it: every byte is widened as a signed one. An n-gram of
    one character is left out where it is the first or last sign.

    Args:
        words: UTF-8.
        shortest: fewest characters of an n-gram.
        longest: most.

    Returns:
        Hashes [G] and the number of the word each belongs to [G].
    """
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    data = np.frombuffer(b"".join(words), dtype=np.uint8)
    word_end = np.cumsum(lengths)
    starts_character = (data & 0xC0) != 0x80
    start = starts_character.nonzero()[0]  # where an n-gram may begin
    of_word = np.searchsorted(word_end, start, side="right")
    word_start = (word_end - lengths)[of_word]
    end_of = word_end[of_word]
    at = start.copy()
    characters = np.zeros(len(start), dtype=np.int64)
    hashed = np.full(len(start), _FNV_OFFSET, dtype=np.uint32)
    found: list[NDArray[np.int64]] = []
    owners: list[NDArray[np.int64]] = []
    while len(at):
        byte = data[at].astype(np.int8).astype(np.uint32)  # sign extended
        characters += starts_character[at]
        hashed = (hashed ^ byte) * _FNV_PRIME
        at = at + 1
        inside = at < end_of
        whole = ~inside | starts_character[np.minimum(at, len(data) - 1)]
        is_gram = whole & (characters >= max(shortest, 1)) & (characters <= longest)
        at_edge = (start == word_start) | ~inside
        is_gram &= ~((characters == 1) & at_edge)
        found.append(hashed[is_gram].astype(np.int64))
        owners.append(of_word[is_gram])
        # Go on where the n-gram may still grow by a byte.
        kept = inside & ~(whole & (characters >= longest))
        at, characters, hashed = at[kept], characters[kept], hashed[kept]
        start, of_word, word_start, end_of = (
            start[kept], of_word[kept], word_start[kept], end_of[kept],
        )  # fmt: skip
    empty = np.empty(0, np.int64)
    return np.concatenate([*found, empty]), np.concatenate([*owners, empty])

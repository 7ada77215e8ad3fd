"""The words of a vocabulary as a table on disk, mapped read-only: processes of a machine share it.

An Arrow file of one record batch whose row is the id: columns ``word``; and for the way back
``hash``, ascending, with the ``id`` that each is of. Nothing is loaded: what is looked at is in the
system's file cache. A look-up is vectorised over a block of words: sorted hashes are searched, and
what is found counts where the word itself is the same, so no word is taken for another. Figures and
what else was measured: docs/decisions/0030-words-on-disk.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.tokenizer import UNKNOWN
from dist_embed.storage.local_file import named

_SCHEMA = pa.schema({"word": pa.large_string(), "hash": pa.uint64(), "id": pa.int32()})
_SEED = b"seed"
# Two words of 10⁹ have one hash in 3 of 100 vocabularies; then another seed is taken.
_SEEDS = 16
_BLOCK = 2**17  # words at once, where all are gone through


class WordTable:
    """A table that `write_words` wrote, mapped.

    Args:
        path: a local file; what proves it is the caller's affair.
        held: is kept as long as the table, so that the file stays.

    Raises ValueError where it is none.
    """

    def __init__(self, path: str, held: object = None) -> None:
        self.path, self._held = path, held
        try:
            reader = pa.ipc.open_file(pa.memory_map(path))
            if reader.schema != _SCHEMA or reader.num_record_batches != 1:
                raise ValueError(f"its columns are {reader.schema.names}")
            batch = reader.get_batch(0)
            self._seed = int(reader.schema.metadata[_SEED])
        except (pa.ArrowException, KeyError, TypeError) as exc:
            raise ValueError(f"{path} is no table of words: {exc}") from exc
        self.words: pa.LargeStringArray = batch.column("word")
        self._hashes: NDArray[np.uint64] = batch.column("hash").to_numpy()
        self._ids: NDArray[np.int32] = batch.column("id").to_numpy()

    def __len__(self) -> int:
        return len(self.words)

    def ids_of(self, words: pa.Array) -> NDArray[np.int32]:
        """[n] the id of each of some words, `UNKNOWN` where it has none."""
        words = words.cast(pa.large_string())
        hashes = _hashes(words, self._seed)
        order = np.argsort(hashes)  # so neighbours lie on the same pages
        place = np.empty(len(hashes), dtype=np.int64)
        place[order] = np.searchsorted(self._hashes, hashes[order])
        np.minimum(place, len(self) - 1, out=place)
        likely = np.flatnonzero(self._hashes[place] == hashes)
        ids = self._ids[place[likely]]
        same = pc.equal(self.words.take(pa.array(ids)), words.take(pa.array(likely)))
        same = same.to_numpy(zero_copy_only=False)
        found = np.full(len(hashes), UNKNOWN, dtype=np.int32)
        found[likely[same]] = ids[same]
        return found

    def words_of(self, ids: list[int] | NDArray[np.int64]) -> list[str]:
        """The word of each of some ids. Raises IndexError where there is no such id."""
        found: list[str] = self.words.take(pa.array(ids, pa.int64())).to_pylist()
        return found

    def blocks(self) -> Iterator[pa.LargeStringArray]:
        """All words by id, some at a time."""
        for first in range(0, len(self), _BLOCK):
            yield self.words.slice(first, _BLOCK)

    def digest(self) -> str:
        """SHA-256, in hex, of all words by id with a zero byte between."""
        digest, between = hashlib.sha256(), b""
        for block in self.blocks():
            digest.update(between)
            digest.update(letters(joined(block, "\0"))[:-1])
            between = b"\0"
        return digest.hexdigest()


def write_words(path: str, words: pa.Array) -> WordTable:
    """Write a table of ``words``, which are distinct and whose place is the id, and map it.

    Memory: the words, and some 30 bytes for each. Raises OSError; ValueError where words are not
    distinct.
    """
    words = words.cast(pa.large_string())
    for seed in range(_SEEDS):
        hashes = np.empty(len(words), dtype=np.uint64)
        for first in range(0, len(words), _BLOCK):
            hashes[first : first + _BLOCK] = _hashes(words.slice(first, _BLOCK), seed)
        order = np.argsort(hashes).astype(np.int32)
        hashes = hashes[order]
        if not (hashes[1:] == hashes[:-1]).any():
            break
    else:
        raise ValueError("the words of a table are not distinct")
    schema = _SCHEMA.with_metadata({_SEED: str(seed)})
    batch = pa.record_batch([words, pa.array(hashes), pa.array(order)], schema=schema)
    with named(path), open(path, "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    return WordTable(path)


def joined(*parts: str | pa.LargeStringArray) -> pa.LargeStringArray:
    """Texts put together, element by element; a text of Python's is the same in all."""
    large = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else p for p in (*parts, "")]
    return pc.binary_join_element_wise(*large)


def letters(words: pa.LargeStringArray) -> memoryview:
    """The UTF-8 bytes of all words, one after the other."""
    if not len(words):
        return memoryview(b"")
    offsets = _offsets(words)
    return memoryview(words.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])]


def _offsets(words: pa.LargeStringArray) -> NDArray[np.int64]:
    return np.frombuffer(words.buffers()[1], np.int64, len(words) + 1, 8 * words.offset)


# Odd, with bits of no pattern: those of the golden ratio, and of the last step of splitmix64
# (Steele et al. 2014, "Fast splittable pseudorandom number generators").
_FACTORS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def _hashes(words: pa.LargeStringArray, seed: int) -> NDArray[np.uint64]:
    """[n] a 64-bit hash of each word: its bytes eight at a time, all words at once.

    Part of the file's format: other values make every word of a table unknown.
    """
    if not len(words):
        return np.empty(0, dtype=np.uint64)
    offsets, text = _offsets(words), letters(words)
    padded = np.zeros(len(text) + 8, dtype=np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    eights = np.ndarray((len(text) + 1,), "<u8", padded, 0, (1,))  # beginning at each byte
    start, left = offsets[:-1] - offsets[0], np.diff(offsets)
    first, second = _FACTORS
    hashes = (left.astype(np.uint64) + np.uint64(seed << 32)) * first
    rest = np.flatnonzero(left > 0)
    while len(rest):
        eight = eights[start[rest]]
        short = np.minimum(left[rest], 8).astype(np.uint64)
        eight &= ~np.uint64(0) >> (np.uint64(64) - np.uint64(8) * short)
        mixed = (hashes[rest] ^ eight) * first
        mixed ^= mixed >> np.uint64(29)
        mixed *= second
        hashes[rest] = mixed ^ (mixed >> np.uint64(32))
        start[rest] += 8
        left[rest] -= 8
        rest = rest[left[rest] > 0]
    return hashes

"""Spills: the counted words of a block of text, in a file, and their sums.

A spill has a record batch per partition, and a hash of the word says which partition it is in. So
the words of a corpus can be summed over all spills some partitions at a time: of each they are one
range of bytes, which a store gives in one request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.scratch import write_scratch
from dist_embed.data.settings import Form, Pieces
from dist_embed.data.stretches import Stretches, words_of
from dist_embed.data.text_form import Lowercase
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.storage import uri as storage
from dist_embed.storage.threads import in_threads

# Into how many pieces the summing can be divided.
PARTITIONS = 256
READ_AT_ONCE = 16  # of a task, and a cluster has many

ROWS = pa.schema([("word", pa.large_string()), ("count", pa.int64())])


@dataclass(frozen=True)
class WordSplitting:
    """How the ``word`` tokenizer splits text: see `Tokenizer.from_words`."""

    lowercase: Lowercase
    split_punctuation: bool
    form: Form = "none"
    pieces: Pieces = "none"


@dataclass(frozen=True)
class Spill:
    """A spill.

    Attributes:
        uri: its file.
        starts: [PARTITIONS + 1] where each partition begins in it, and where the last one ends.
        rows: how many it has.
        running: how many words the block has.
    """

    uri: str
    starts: NDArray[np.int64]
    rows: int
    running: int

    def range_of(self, first: int, end: int) -> tuple[str, int, int]:
        """Partitions ``first`` to ``end - 1``: the file, and its bytes from here to there."""
        return self.uri, int(self.starts[first]), int(self.starts[end])


@dataclass(frozen=True)
class Sums:
    """Some partitions, summed over all spills.

    Attributes:
        uri: a file with the words that occur often enough.
        distinct: how many different words there are, the rare ones among them.
        histogram: columns ``count`` and ``words``: so many words of the file occur so often.
    """

    uri: str
    distinct: int
    histogram: pa.Table


def split_and_count(texts: list[str], splitting: WordSplitting) -> pa.RecordBatch:
    """The words of ``texts``, columns ``word`` and ``count``; a word may have several rows."""
    tokenizer = Tokenizer.from_words(
        [],
        lowercase=splitting.lowercase,
        split_punctuation=splitting.split_punctuation,
        form=splitting.form,
        pieces=splitting.pieces,
    )
    stretches = Stretches.of(texts, tokenizer)
    times = np.bincount(stretches.which, minlength=len(stretches.distinct))
    are_words = stretches.are_words(tokenizer)
    words = words_of(stretches.distinct.filter(pa.array(are_words)), tokenizer)
    others = stretches.distinct.filter(pa.array(~are_words)).to_pylist()
    parts = [tokenizer.split(stretch) for stretch in others]
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    more = pa.array(list(chain.from_iterable(parts)), pa.large_string())
    counts = np.concatenate([times[are_words], np.repeat(times[~are_words], lengths)])
    return pa.record_batch([pa.concat_arrays([words, more]), pa.array(counts)], schema=ROWS)


def write_spill(texts: list[str], splitting: WordSplitting, uri: str) -> Spill:
    """Count ``texts`` and write a spill."""
    batch = split_and_count(texts, splitting)
    words = batch.column("word").cast(pa.large_binary()).to_pylist()
    # Not Python's own hash, which every process draws anew.
    partition = np.fromiter(map(crc32, words), dtype=np.int64, count=len(words)) % PARTITIONS
    order = np.argsort(partition)
    bounds = np.searchsorted(partition[order], np.arange(PARTITIONS + 1)).tolist()
    batch = batch.take(order)
    parts = [batch.slice(start, end - start).serialize() for start, end in pairwise(bounds)]
    write_scratch(uri, b"".join(parts))
    starts = np.cumsum([0, *map(len, parts)])
    return Spill(uri, starts, batch.num_rows, int(batch.column("count").to_numpy().sum()))


def sum_partitions(
    ranges: list[tuple[str, int, int]], min_count: int, sum_rows: int, uri: str
) -> Sums:
    """Sum some partitions over all spills and write the words to ``uri``.

    Words with less than ``min_count`` are left out. About twice ``sum_rows`` rows are held at once,
    or as many as the partitions have different words.

    Args:
        ranges: where the partitions lie in each spill, see `Spill.range_of`.
        min_count: of the words that are kept.
        sum_rows: rows that are summed at once.
        uri: a file to be written.
    """
    total, more, rows = ROWS.empty_table(), [], 0
    for batch in _batches(ranges):
        more.append(batch)
        rows += batch.num_rows
        # As many new rows as there are sums, or every few rows would sum all again.
        if rows >= max(sum_rows, total.num_rows):
            total, more, rows = _added(total, more), [], 0
    total = _added(total, more)
    kept = total.filter(pc.greater_equal(total.column("count"), min_count))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, ROWS) as writer:
        writer.write_table(kept)
    write_scratch(uri, sink.getvalue().to_pybytes())
    histogram = kept.group_by("count", use_threads=False).aggregate([([], "count_all")])
    return Sums(uri, total.num_rows, histogram.rename_columns(["count", "words"]))


def _batches(ranges: list[tuple[str, int, int]]) -> Iterator[pa.RecordBatch]:
    """Those of each range, in order; some ranges are read at once, as a store takes its time."""
    read: dict[int, bytes] = {}

    def fetch(number: int) -> None:
        read[number] = storage.read_range(*ranges[number])

    for first in range(0, len(ranges), READ_AT_ONCE):
        numbers = range(first, min(first + READ_AT_ONCE, len(ranges)))
        in_threads(fetch, numbers, lambda _: None, num_threads=READ_AT_ONCE)
        for number in numbers:
            part = read.pop(number)
            stream = pa.BufferReader(part)
            while stream.tell() < len(part):
                yield pa.ipc.read_record_batch(pa.ipc.read_message(stream), ROWS)


def read_sums(uri: str) -> pa.Table:
    """Columns ``word`` and ``count`` of a file of `sum_partitions`."""
    return pa.ipc.open_file(pa.py_buffer(storage.read_bytes(uri))).read_all()


def _added(total: pa.Table, more: list[pa.RecordBatch]) -> pa.Table:
    rows = pa.concat_tables([total, pa.Table.from_batches(more, ROWS)])
    sums = rows.group_by("word", use_threads=False).aggregate([("count", "sum")])
    return sums.rename_columns(["word", "count"])

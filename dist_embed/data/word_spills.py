"""Spills: the counted words of a block of text, on disk, and their sums.

A spill has a record batch per partition, and a hash of the word says which partition it is in. So
the words of a corpus can be summed over all spills some partitions at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dist_embed.data.settings import Form, Pieces
from dist_embed.data.stretches import Stretches, words_of
from dist_embed.data.text_form import Lowercase
from dist_embed.data.tokenizer import Tokenizer

# Into how many pieces the summing can be divided.
PARTITIONS = 256

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
    """A spill: its file, its rows, and how many words the block has."""

    path: str
    rows: int
    running: int


@dataclass(frozen=True)
class Sums:
    """Some partitions, summed over all spills.

    Attributes:
        path: a file with the words that occur often enough.
        distinct: how many different words there are, the rare ones among them.
        histogram: columns ``count`` and ``words``: so many words of the file occur so often.
    """

    path: str
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


def write_spill(texts: list[str], splitting: WordSplitting, path: str) -> Spill:
    """Count ``texts`` and write a spill to ``path``."""
    batch = split_and_count(texts, splitting)
    words = batch.column("word").cast(pa.large_binary()).to_pylist()
    # Not Python's own hash, which every process draws anew.
    partition = np.fromiter(map(crc32, words), dtype=np.int64, count=len(words)) % PARTITIONS
    order = np.argsort(partition)
    starts = np.searchsorted(partition[order], np.arange(PARTITIONS + 1)).tolist()
    batch = batch.take(order)
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, ROWS) as writer:
        for start, end in pairwise(starts):
            writer.write_batch(batch.slice(start, end - start))
    return Spill(path, batch.num_rows, int(batch.column("count").to_numpy().sum()))


def sum_partitions(
    spills: list[str], first: int, end: int, min_count: int, sum_rows: int, path: str
) -> Sums:
    """Sum partitions ``first`` to ``end - 1`` over the ``spills`` and write the words to ``path``.

    Words with less than ``min_count`` are left out. About twice ``sum_rows`` rows are held at once,
    or as many as the partitions have different words.
    """
    total, more, rows = ROWS.empty_table(), [], 0
    for spill in spills:
        with pa.OSFile(spill) as file:
            reader = pa.ipc.open_file(file)
            for number in range(first, end):
                more.append(reader.get_batch(number))
                rows += more[-1].num_rows
                # As many new rows as there are sums, or every few rows would sum all again.
                if rows >= max(sum_rows, total.num_rows):
                    total, more, rows = _added(total, more), [], 0
    total = _added(total, more)
    kept = total.filter(pc.greater_equal(total.column("count"), min_count))
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, ROWS) as writer:
        writer.write_table(kept)
    histogram = kept.group_by("count", use_threads=False).aggregate([([], "count_all")])
    return Sums(path, total.num_rows, histogram.rename_columns(["count", "words"]))


def read_sums(path: str) -> pa.Table:
    """Columns ``word`` and ``count`` of a file of `sum_partitions`."""
    with pa.OSFile(path) as file:
        return pa.ipc.open_file(file).read_all()


def _added(total: pa.Table, more: list[pa.RecordBatch]) -> pa.Table:
    rows = pa.concat_tables([total, pa.Table.from_batches(more, ROWS)])
    sums = rows.group_by("word", use_threads=False).aggregate([("count", "sum")])
    return sums.rename_columns(["word", "count"])

"""How often each word of a corpus occurs, and which words are kept.

Millions of distinct words do not fit every machine, so no process holds them all. Processes count
blocks of text and write what they found to *spills* in a scratch folder (`word_spills`). Then these
are summed, some partitions of the words at a time. A histogram of the sums tells how often a word
must occur to be kept, and the sums are filtered by it one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.executor import Executor, Pool
from dist_embed.data.text.rows import Pair
from dist_embed.data.token_shards import SIDES
from dist_embed.data.tokenizer import SPECIAL_TOKENS, UNKNOWN
from dist_embed.data.word_spills import (
    PARTITIONS,
    ROWS,
    Spill,
    Sums,
    WordSplitting,
    read_sums,
    sum_partitions,
    write_spill,
)
from dist_embed.storage import uri as storage

# Characters per block of text.
BLOCK_CHARACTERS = 4_000_000
# Rows of spills that a process sums at once.
SUM_ROWS = 1_000_000


@dataclass(frozen=True)
class WordCounts:
    """The words that are kept, most frequent first, equal counts by word.

    Attributes:
        words: the words, without special tokens, as an array of Arrow.
        counts: how often each occurs.
        distinct: how many different words the text has, those left out among them.
        running: how many words the text has.
    """

    words: pa.Array
    counts: NDArray[np.int64]
    distinct: int
    running: int

    @property
    def outside(self) -> int:
        """How many words of the text are none of ``words``."""
        return self.running - int(self.counts.sum())

    def by_id(self) -> NDArray[np.int64]:
        """[V] the counts with those of the special tokens before them."""
        special = np.zeros(len(SPECIAL_TOKENS), dtype=np.int64)
        special[UNKNOWN] = self.outside
        return np.concatenate([special, self.counts])


def count_words(
    pairs: Iterable[Pair],
    splitting: WordSplitting,
    *,
    shared: bool,
    keep: int,
    min_count: int,
    executor: Executor,
    block_characters: int = BLOCK_CHARACTERS,
    sum_rows: int = SUM_ROWS,
) -> dict[str, WordCounts]:
    """The ``keep`` most frequent words of each side; of both sides as one where ``shared``.

    The result does not depend on what runs it. Memory, here and in each process, is for some
    blocks, ``sum_rows`` rows and ``keep`` words; all else lies in the executor's scratch folder
    until this returns.

    Args:
        pairs: the text; read once.
        splitting: how text becomes words.
        shared: count both sides as one.
        keep: upper bound of the words that are kept.
        min_count: rarer words are left out.
        executor: who counts.
        block_characters: size of a block of text.
        sum_rows: rows of spills that a process sums at once.

    Raises:
        UserError: the scratch folder is full.
    """
    with (
        executor.scratch("dist_embed-words-", "the words of the corpus are counted") as folder,
        executor.pool() as pool,
    ):
        blocks = enumerate(_blocks(pairs, block_characters))
        written = pool.map(
            _write_spills,
            ((block, splitting, shared, storage.join(folder, f"spill-{i}")) for i, block in blocks),
        )
        spills: dict[str, list[Spill]] = {side: [] for side in SIDES[: 1 if shared else 2]}
        for of_block in written:
            for side, spill in of_block.items():
                spills[side].append(spill)
        counts = {}
        for side, of_side in spills.items():
            sums = _sum_all(pool, of_side, min_count, sum_rows, storage.join(folder, side))
            kept = most_frequent(sums, keep)
            counts[side] = WordCounts(
                kept.column("word").combine_chunks(),
                kept.column("count").to_numpy(),
                sum(part.distinct for part in sums),
                sum(spill.running for spill in of_side),
            )
        return {side: counts[side if side in counts else "source"] for side in SIDES}


def _blocks(pairs: Iterable[Pair], characters: int) -> Iterator[list[Pair]]:
    block: list[Pair] = []
    size = 0
    for pair in pairs:
        block.append(pair)
        size += len(pair[0]) + len(pair[1]) + 2
        if size >= characters:
            yield block
            block, size = [], 0
    if block:
        yield block


def _write_spills(
    block: list[Pair], splitting: WordSplitting, shared: bool, uri: str
) -> dict[str, Spill]:
    """A spill per side, or one of both, called the source's."""
    if shared:
        return {"source": write_spill([text for pair in block for text in pair], splitting, uri)}
    return {
        side: write_spill([pair[place] for pair in block], splitting, f"{uri}-{side}")
        for place, side in enumerate(SIDES)
    }


def _sum_all(
    pool: Pool, spills: list[Spill], min_count: int, sum_rows: int, uri: str
) -> list[Sums]:
    """All partitions, as many at a time as have about ``sum_rows`` rows."""
    tasks = max(1, min(PARTITIONS, sum(spill.rows for spill in spills) // sum_rows))
    bounds = [PARTITIONS * i // tasks for i in range(tasks + 1)]
    arguments = (
        ([spill.range_of(first, end) for spill in spills], min_count, sum_rows,
         f"{uri}-sum-{first}")
        for first, end in itertools.pairwise(bounds)
    )  # fmt: skip
    return list(pool.map(sum_partitions, arguments))


def most_frequent(sums: list[Sums], keep: int) -> pa.Table:
    """The ``keep`` rows that come first by (-count, word), in this order.

    What is held at once: the rows of one part, those kept, and as many as are still wanted of the
    words that occur equally often where the vocabulary ends.
    """
    least, last, room = _threshold([part.histogram for part in sums], keep)
    kept, ties = [ROWS.empty_table()], ROWS.empty_table()
    for part in sums:
        words = read_sums(part.uri)
        counts = words.column("count")
        # Masks, because expressions are computed by threads of Arrow (see `storage.parquet`).
        kept.append(words.filter(pc.greater_equal(counts, least)))
        more = words.filter(pc.equal(counts, last))
        if ties.num_rows == room and room:
            more = more.filter(pc.less(more.column("word"), ties.column("word")[-1]))
        ties = _sorted(pa.concat_tables([ties, more]), ("word", "ascending")).slice(0, room)
    return _sorted(pa.concat_tables([*kept, ties]), ("count", "descending"), ("word", "ascending"))


def _sorted(table: pa.Table, *keys: tuple[str, str]) -> pa.Table:
    return table.take(pc.sort_indices(table, sort_keys=list(keys)))


def _threshold(histograms: list[pa.Table], keep: int) -> tuple[int, int, int]:
    """``least, last, room``: words with ``least`` and more are kept, and ``room`` with ``last``."""
    histogram = pa.concat_tables(histograms).group_by("count", use_threads=False)
    sums = _sorted(histogram.aggregate([("words", "sum")]), ("count", "descending"))
    counts = sums.column("count").to_numpy()
    up_to = np.cumsum(sums.column("words_sum").to_numpy())
    whole = int(np.searchsorted(up_to, keep, side="right"))  # counts whose words all fit
    least = int(counts[whole - 1]) if whole else 1 << 62
    if whole == len(counts):
        return least, 0, 0
    return least, int(counts[whole]), keep - (int(up_to[whole - 1]) if whole else 0)

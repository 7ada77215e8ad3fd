"""Encoding a stream of sentence pairs on several processes, a few blocks at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.corpus import Pair
from dist_embed.data.processes import Processes
from dist_embed.data.token_shards import ShardInfo, write_shard
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.storage import uri as storage


@dataclass(frozen=True)
class LengthRule:
    """What happens to a training pair with more than ``max_tokens`` tokens on either side."""

    max_tokens: int
    too_long: Literal["drop", "cut"]


@dataclass
class EncodedBlock:
    """One written shard and what was left out of it."""

    info: ShardInfo
    dropped_empty: int = 0
    dropped_long: int = 0
    cut: int = 0


class EncodingPool:
    """Processes that each hold both tokenizers; 0: one per core."""

    def __init__(self, source: Tokenizer, target: Tokenizer, num_processes: int) -> None:
        self._processes = Processes(
            num_processes,
            _load_tokenizers,
            (source.to_json(), None if target is source else target.to_json()),
        )

    @property
    def num_processes(self) -> int:
        """How many there are."""
        return self._processes.number

    def count_tokens(self, pairs: Iterable[Pair], block: int) -> dict[str, NDArray[np.int64]]:
        """How often each id occurs on each side."""
        totals: dict[str, NDArray[np.int64]] = {}
        for counts in self._processes.map(_count_block, ((b,) for b in _blocks(pairs, block))):
            for side, count in counts.items():
                totals[side] = totals[side] + count if side in totals else count
        return totals

    def write_shards(
        self,
        pairs: Iterable[Pair],
        data_uri: str,
        split: str,
        *,
        shard_sentences: int,
        rule: LengthRule | None,
        oov_buckets: int = 0,
    ) -> Iterator[EncodedBlock]:
        """Encode and write ``split``; in order. Without a rule (held-out data) nothing is left out
        and the texts are stored too. Unknown source words are hashed to ``oov_buckets`` ids; 0:
        they are one word.
        """
        arguments = (
            (block, data_uri, f"{split}/shard-{number:05d}.parquet", rule, oov_buckets)
            for number, block in enumerate(_blocks(pairs, shard_sentences))
        )
        yield from self._processes.map(_write_block, arguments)

    def close(self) -> None:
        """End the processes; blocks not yet begun are given up."""
        self._processes.close()


@contextmanager
def encoding_pool(
    source: Tokenizer, target: Tokenizer, num_processes: int
) -> Iterator[EncodingPool]:
    """An `EncodingPool` for the length of a ``with`` block; 0 processes: one per core."""
    pool = EncodingPool(source, target, num_processes)
    try:
        yield pool
    finally:
        pool.close()


def _blocks(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(pairs)
    while block := list(islice(iterator, size)):
        yield block


# In the processes of the pool: the tokenizers of source and target.
_tokenizers: list[Tokenizer] = []


def _load_tokenizers(source: str, target: str | None) -> None:
    first = Tokenizer.from_json(source)
    _tokenizers[:] = [first, first if target is None else Tokenizer.from_json(target)]


def _encode(block: list[Pair], oov_buckets: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    source, target = _tokenizers
    sources = [s for s, _ in block]
    ids = source.encode_hashed(sources, oov_buckets) if oov_buckets else source.encode(sources)
    return ids, target.encode([t for _, t in block])


def _count_block(block: list[Pair]) -> dict[str, NDArray[np.int64]]:
    counts = {}
    for side, tokenizer, sentences in zip(
        ("source", "target"), _tokenizers, _encode(block), strict=True
    ):
        flat = np.fromiter(chain.from_iterable(sentences), dtype=np.int64)
        counts[side] = np.bincount(flat, minlength=tokenizer.size).astype(np.int64)
    return counts


def _write_block(
    block: list[Pair], data_uri: str, name: str, rule: LengthRule | None, oov_buckets: int
) -> EncodedBlock:
    source, target = _encode(block, oov_buckets)
    result = EncodedBlock(ShardInfo(name, 0, 0, 0))
    texts = None
    if rule is None:
        texts = ([s for s, _ in block], [t for _, t in block])
    else:
        source, target = _apply_rule(source, target, rule, result)
    write_shard(storage.join(data_uri, name), source, target, texts)
    result.info = ShardInfo(name, len(source), sum(map(len, source)), sum(map(len, target)))
    return result


def _apply_rule(
    source: list[list[int]], target: list[list[int]], rule: LengthRule, result: EncodedBlock
) -> tuple[list[list[int]], list[list[int]]]:
    kept_source, kept_target = [], []
    for left, right in zip(source, target, strict=True):
        if not left or not right:
            result.dropped_empty += 1
            continue
        if max(len(left), len(right)) > rule.max_tokens:
            if rule.too_long == "drop":
                result.dropped_long += 1
                continue
            result.cut += 1
        kept_source.append(left[: rule.max_tokens])
        kept_target.append(right[: rule.max_tokens])
    return kept_source, kept_target

"""Encoding a stream of sentence pairs on several processes, a few blocks at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.block_index import ShardBlocks, blocks_of
from dist_embed.data.corpus import Pair
from dist_embed.data.processes import Processes, ended
from dist_embed.data.proof import FileInfo
from dist_embed.data.settings import DataSection
from dist_embed.data.stretches import encode_column
from dist_embed.data.token_shards import SIDES, ShardInfo, content_digest, shard_content
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.storage import uri as storage


@dataclass
class EncodedBlock:
    """One written shard, what was left out of it, and of training data by side which ids it has,
    and how often.
    """

    info: ShardInfo
    blocks: ShardBlocks = field(default_factory=ShardBlocks)
    dropped_empty: int = 0
    dropped_long: int = 0
    dropped_ratio: int = 0
    cut: int = 0
    occurrences: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]] = field(
        default_factory=dict
    )


class EncodingPool:
    """Processes that each have both tokenizers, and share the tables of their words; 0: one per
    core.
    """

    def __init__(self, source: Tokenizer, target: Tokenizer, num_processes: int) -> None:
        self.processes = Processes(
            num_processes,
            _keep_tokenizers,
            (source, target),
        )

    @property
    def num_processes(self) -> int:
        """How many there are."""
        return self.processes.number

    def count_tokens(self, pairs: Iterable[Pair], block: int) -> dict[str, NDArray[np.int64]]:
        """How often each id occurs on each side."""
        totals: dict[str, NDArray[np.int64]] = {}
        for counts in self.processes.map(_count_block, ((b,) for b in _blocks(pairs, block))):
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
        rule: DataSection | None,
        oov_buckets: int = 0,
    ) -> Iterator[EncodedBlock]:
        """Encode and write ``split``; in order. ``rule`` says what becomes of pairs of unusual
        lengths; without one, for held-out data, nothing is left out and the texts are stored too.
        Unknown source words are hashed to ``oov_buckets`` ids; 0: they are one word.
        """
        arguments = (
            (block, data_uri, f"{split}/shard-{number:05d}.parquet", rule, oov_buckets)
            for number, block in enumerate(_blocks(pairs, shard_sentences))
        )
        yield from self.processes.map(_write_block, arguments)


@contextmanager
def encoding_pool(
    source: Tokenizer, target: Tokenizer, num_processes: int
) -> Iterator[EncodingPool]:
    """An `EncodingPool` for the length of a ``with`` block; 0 processes: one per core."""
    pool = EncodingPool(source, target, num_processes)
    with ended(pool.processes):
        yield pool


def _blocks(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(pairs)
    while block := list(islice(iterator, size)):
        yield block


# In the processes of the pool: the tokenizers of source and target.
_tokenizers: list[Tokenizer] = []


def _keep_tokenizers(source: Tokenizer, target: Tokenizer) -> None:
    _tokenizers[:] = [source, target]


def _encode(block: list[Pair], oov_buckets: int = 0) -> tuple[pa.ListArray, pa.ListArray]:
    source, target = _tokenizers
    return (
        encode_column(source, [text for text, _ in block], oov_buckets),
        encode_column(target, [text for _, text in block]),
    )


def _count_block(block: list[Pair]) -> dict[str, NDArray[np.int64]]:
    return {
        side: np.bincount(ids.flatten(), minlength=tokenizer.size).astype(np.int64)
        for side, tokenizer, ids in zip(SIDES, _tokenizers, _encode(block), strict=True)
    }


def _write_block(
    block: list[Pair], data_uri: str, name: str, rule: DataSection | None, oov_buckets: int
) -> EncodedBlock:
    source, target = _encode(block, oov_buckets)
    result = EncodedBlock(ShardInfo(name, 0, 0, 0))
    texts = None
    if rule is None:
        texts = ([s for s, _ in block], [t for _, t in block])
    else:
        source, target = _apply_rule(source, target, rule, result)
    stored = shard_content(source, target, texts)
    storage.write_bytes(storage.join(data_uri, name), stored)
    result.blocks = blocks_of(stored, source, target)
    source_tokens, target_tokens = (int(_lengths(side).sum()) for side in (source, target))
    content = content_digest(source, target)
    result.info = ShardInfo(
        name, len(source), source_tokens, target_tokens, FileInfo.of(stored), content
    )
    if rule is not None:
        for side, ids in zip(SIDES, (source, target), strict=True):
            found = pc.value_counts(ids.flatten())
            result.occurrences[side] = (found.field(0).to_numpy(), found.field(1).to_numpy())
    return result


def _apply_rule(
    source: pa.ListArray, target: pa.ListArray, rule: DataSection, result: EncodedBlock
) -> tuple[pa.ListArray, pa.ListArray]:
    left, right = _lengths(source), _lengths(target)
    kept = np.minimum(left, right) > 0
    result.dropped_empty = int((~kept).sum())
    shorter, longer = np.minimum(left, right), np.maximum(left, right)
    too_long = longer > rule.max_tokens
    if rule.too_long == "drop":
        result.dropped_long = int((kept & too_long).sum())
        kept &= ~too_long
    if rule.max_length_ratio is not None:
        unlike = longer > rule.max_length_ratio * shorter
        result.dropped_ratio = int((kept & unlike).sum())
        kept &= ~unlike
    result.cut = int((kept & too_long).sum())
    source, target = (side.filter(pa.array(kept)) for side in (source, target))
    return pc.list_slice(source, 0, rule.max_tokens), pc.list_slice(target, 0, rule.max_tokens)


def _lengths(ids: pa.ListArray) -> NDArray[np.int32]:
    return pc.list_value_length(ids).to_numpy()

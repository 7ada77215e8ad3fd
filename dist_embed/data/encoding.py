"""Encoding a stream of sentence pairs, a few blocks at a time, on whatever an executor starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.block_index import ShardBlocks, blocks_of
from dist_embed.data.executor import Executor, Pool
from dist_embed.data.finished_shards import (
    LeftOut,
    keep_record,
    made_from,
    take_over,
)
from dist_embed.data.proof import FileInfo
from dist_embed.data.settings import DataSection
from dist_embed.data.stretches import encode_column
from dist_embed.data.text.rows import Pair
from dist_embed.data.token_shards import (
    SIDES,
    ShardInfo,
    content_digest,
    lists_of,
    shard_content,
)
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.storage import uri as storage


@dataclass(frozen=True)
class EncodedBlock:
    """A written shard.

    Attributes:
        info: of the shard.
        blocks: of it.
        left_out: of what was to become it.
        taken_over: it had been finished by an earlier preparation.
        occurrences: of training data, by side, which ids it has, and how often.
    """

    info: ShardInfo
    blocks: ShardBlocks
    left_out: LeftOut
    taken_over: bool
    occurrences: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]] = field(
        default_factory=dict
    )


class EncodingPool:
    """A pool whose processes have both tokenizers; those of a machine share the tables of their
    words.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def count_tokens(self, pairs: Iterable[Pair], block: int) -> dict[str, NDArray[np.int64]]:
        """How often each id occurs on each side."""
        totals: dict[str, NDArray[np.int64]] = {}
        for counts in self._pool.map(_count_block, ((b,) for b in _blocks(pairs, block))):
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
        recipe: str = "",
        finished: dict[str, list[str]] | None = None,
    ) -> Iterator[EncodedBlock]:
        """Encode and write ``split``; in order.

        Args:
            pairs: its text.
            data_uri: a folder; the names of shards begin with ``split``.
            split: of the data.
            shard_sentences: pairs of a shard.
            rule: what becomes of pairs of unusual lengths; without one, for held-out data, nothing
                is left out and the texts are stored too.
            oov_buckets: unknown source words are hashed to so many ids; 0: they are one word.
            recipe: what tells the tokenizers from others.
            finished: shards that earlier preparations have finished, and in which folders.
        """
        names = (f"{split}/shard-{number:05d}.parquet" for number in itertools.count())
        arguments = (
            (block, data_uri, name, rule, oov_buckets, recipe, (finished or {}).get(name, []))
            for name, block in zip(names, _blocks(pairs, shard_sentences), strict=False)
        )
        yield from self._pool.map(_write_block, arguments)


@contextmanager
def encoding_pool(
    source: Tokenizer, target: Tokenizer, executor: Executor
) -> Iterator[EncodingPool]:
    """An `EncodingPool` for the length of a ``with`` block."""
    with executor.pool(_keep_tokenizers, (source, target)) as pool:
        yield EncodingPool(pool)


def _blocks(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(pairs)
    while block := list(itertools.islice(iterator, size)):
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
    block: list[Pair], data_uri: str, name: str, rule: DataSection | None, oov_buckets: int,
    recipe: str, earlier: list[str],
) -> EncodedBlock:  # fmt: skip
    """Write a shard, made now or by an earlier preparation."""
    lengths = rule and (rule.max_tokens, rule.too_long, rule.max_length_ratio)
    made = made_from(block, recipe, oov_buckets, lengths)
    found = take_over(earlier, name, made)
    stored, left_out = found or _shard_of(block, rule, oov_buckets)
    storage.write_bytes(storage.join(data_uri, name), stored)
    file = FileInfo.of(stored)
    keep_record(data_uri, name, made, file, left_out)
    source, target = sides = lists_of(stored)
    source_tokens, target_tokens = (int(_lengths(side).sum()) for side in sides)
    content = content_digest(source, target)
    info = ShardInfo(name, len(source), source_tokens, target_tokens, file, content)
    result = EncodedBlock(info, blocks_of(stored, source, target), left_out, found is not None)
    if rule is not None:
        for side, ids in zip(SIDES, sides, strict=True):
            counted = pc.value_counts(ids.flatten())
            result.occurrences[side] = (counted.field(0).to_numpy(), counted.field(1).to_numpy())
    return result


def _shard_of(
    block: list[Pair], rule: DataSection | None, oov_buckets: int
) -> tuple[bytes, LeftOut]:
    source, target = _encode(block, oov_buckets)
    if rule is None:
        texts = ([s for s, _ in block], [t for _, t in block])
        return shard_content(source, target, texts), LeftOut()
    source, target, left_out = _apply_rule(source, target, rule)
    return shard_content(source, target), left_out


def _apply_rule(
    source: pa.ListArray, target: pa.ListArray, rule: DataSection
) -> tuple[pa.ListArray, pa.ListArray, LeftOut]:
    left, right = _lengths(source), _lengths(target)
    kept = np.minimum(left, right) > 0
    left_out = LeftOut(dropped_empty=int((~kept).sum()))
    shorter, longer = np.minimum(left, right), np.maximum(left, right)
    too_long = longer > rule.max_tokens
    if rule.too_long == "drop":
        left_out.dropped_long = int((kept & too_long).sum())
        kept &= ~too_long
    if rule.max_length_ratio is not None:
        unlike = longer > rule.max_length_ratio * shorter
        left_out.dropped_ratio = int((kept & unlike).sum())
        kept &= ~unlike
    left_out.cut = int((kept & too_long).sum())
    source, target = (side.filter(pa.array(kept)) for side in (source, target))
    most = rule.max_tokens
    return pc.list_slice(source, 0, most), pc.list_slice(target, 0, most), left_out


def _lengths(ids: pa.ListArray) -> NDArray[np.int32]:
    return pc.list_value_length(ids).to_numpy()

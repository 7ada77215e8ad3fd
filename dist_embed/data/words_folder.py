"""Prepared data with a vocabulary of any size, without a text. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_embed.data.block_index import blocks_of
from dist_embed.data.prepare import write_blocks, write_vocabulary
from dist_embed.data.proof import FileInfo
from dist_embed.data.scratch import scratch_folder
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.token_shards import (
    INDEX_NAME,
    SIDES,
    PreparedData,
    ShardInfo,
    Split,
    content_digest,
    shard_content,
)
from dist_embed.data.tokenizer import SPACE, SPECIAL_TOKENS, Tokenizer
from dist_embed.data.tokenizer_files import write_tokenizers
from dist_embed.data.word_table import joined
from dist_embed.data.zipf import zipf
from dist_embed.storage import uri as storage

_SHARD = "train/shard-00000.parquet"


def some_words(count: int) -> pa.LargeStringArray:
    """Distinct words of nine or ten digits, with the mark before them."""
    numbers = np.arange(count, dtype=np.int64) * 2654435761 % 2**32
    return joined(SPACE, pa.array(numbers).cast(pa.large_string()))


def write_words_folder(
    folder_uri: str,
    vocabulary: dict[str, int],
    *,
    shared: bool | None = None,
    sentences: int = 0,
    length: int = 31,
    seed: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Write a data folder.

    Args:
        folder_uri: is made.
        vocabulary: V of each side.
        shared: whether they have one vocabulary; None: where they are of one size.
        sentences: training pairs, whose words follow Zipf's law by rank.
        length: words of each sentence.
        seed: decides the sentences.
        settings: kept in ``data.json``, to tell whether the folder fits a configuration.
    """
    sizes = {side: vocabulary[side] for side in SIDES}
    shared = sizes["source"] == sizes["target"] if shared is None else shared
    draw = np.random.default_rng(seed)
    ids = {side: _sentences(draw, sizes[side], sentences * length) for side in SIDES}
    split, files = _train_split(folder_uri, ids, length) if sentences else (Split(), {})
    own = {side: _occurrences(ids[side], sizes[side]) for side in SIDES}
    tokenizers: dict[str, Tokenizer] = {}
    with scratch_folder("dist_embed-vocabulary-", "words are written") as scratch:
        for side, size in sizes.items():
            if shared and tokenizers:
                tokenizers[side] = tokenizers["source"]
                continue
            tokenizers[side] = TableTokenizer.write(
                os.path.join(scratch, side), some_words(size - len(SPECIAL_TOKENS)),
                lowercase=False, split_punctuation=True,
            )  # fmt: skip
        written, digests = write_tokenizers(folder_uri, tokenizers)
        for side in SIDES:
            counts = own["source"] + own["target"] if shared else own[side]
            # A word that no sentence has is one of the vocabulary all the same.
            files |= write_vocabulary(
                folder_uri, side, tokenizers[side], np.maximum(counts, 1), own[side]
            )
    data = PreparedData(
        dict(settings or {}), sizes, shared, {"train": split}, files=files | written,
        digests=digests, word_tables=True, inputs={}, folder_uri=folder_uri,
    )  # fmt: skip
    storage.write_text(storage.join(folder_uri, INDEX_NAME), data.to_json())
    return data


def _sentences(draw: np.random.Generator, num_words: int, count: int) -> NDArray[np.int32]:
    """Ids of words, and of no special token."""
    special = len(SPECIAL_TOKENS)
    return zipf(draw, num_words - special, count) + np.int32(special)


def _occurrences(ids: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """How often each id is among ``ids``; without any, as if each were there once."""
    return np.bincount(ids, minlength=size).astype(np.int64) if len(ids) else np.ones(size, int)


def _train_split(
    folder_uri: str, ids: Mapping[str, NDArray[np.int32]], length: int
) -> tuple[Split, dict[str, FileInfo]]:
    tokens = len(ids["source"])
    offsets = pa.array(np.arange(tokens // length + 1) * length, pa.int32())
    source, target = (pa.ListArray.from_arrays(offsets, pa.array(ids[side])) for side in SIDES)
    content = shard_content(source, target)
    storage.write_bytes(storage.join(folder_uri, _SHARD), content)
    split = Split([
        ShardInfo(_SHARD, len(source), tokens, tokens, FileInfo.of(content),
                  content_digest(source, target))
    ])  # fmt: skip
    return split, write_blocks(folder_uri, split, [blocks_of(content, source, target)])

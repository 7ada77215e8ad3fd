"""Prepared data with a vocabulary of any size, without a text. Free of torch."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_embed.bench.zipf import zipf
from dist_embed.data.prepare import write_vocabulary
from dist_embed.data.scratch import scratch_folder
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.token_shards import (
    INDEX_NAME,
    SIDES,
    PreparedData,
    ShardInfo,
    Split,
    content_digest,
    write_shard,
)
from dist_embed.data.tokenizer import SPACE, SPECIAL_TOKENS, Tokenizer
from dist_embed.data.tokenizer_files import write_tokenizers
from dist_embed.data.word_table import joined
from dist_embed.storage import uri as storage

_SHARD = "train/shard-00000.parquet"


def some_words(count: int) -> pa.LargeStringArray:
    """Distinct words of nine or ten digits, with the mark before them."""
    numbers = np.arange(count, dtype=np.int64) * 2654435761 % 2**32
    return joined(SPACE, pa.array(numbers).cast(pa.large_string()))


def write_words_folder(
    folder_uri: str, vocabulary: dict[str, int], *, sentences: int = 0, length: int = 31
) -> PreparedData:
    """Write a data folder.

    Args:
        folder_uri: is made.
        vocabulary: V of each side; one vocabulary of both where they are equal.
        sentences: training pairs, whose words follow Zipf's law by rank.
        length: words of each sentence.
    """
    sizes = {side: vocabulary[side] for side in SIDES}
    shared = sizes["source"] == sizes["target"]
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
        files, digests = write_tokenizers(folder_uri, tokenizers)
        words = _drawn_words(sizes, sentences * length)
        occurrences = {side: _occurrences(words[side], size) for side, size in sizes.items()}
        for side in SIDES:
            counts = occurrences[side]
            if shared:
                counts = occurrences["source"] + occurrences["target"]
            files |= write_vocabulary(folder_uri, side, tokenizers[side], counts, occurrences[side])
    data = PreparedData(
        {}, sizes, shared, {"train": _train_split(folder_uri, words, sentences, length)},
        files=files, digests=digests, word_tables=True, folder_uri=folder_uri,
    )  # fmt: skip
    storage.write_text(storage.join(folder_uri, INDEX_NAME), data.to_json())
    return data


def _drawn_words(sizes: dict[str, int], count: int) -> dict[str, NDArray[np.int32]]:
    """So many words of each side, by Zipf's law."""
    draw = np.random.default_rng(1)
    return {side: zipf(draw, sizes[side], count) for side in SIDES}


def _occurrences(words: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    """How often each id is among ``words``; without any, as if each were there once."""
    if not len(words):
        return np.ones(size, np.int64)
    return np.bincount(words, minlength=size).astype(np.int64)


def _train_split(
    folder_uri: str, words: dict[str, NDArray[np.int32]], sentences: int, length: int
) -> Split:
    if not sentences:
        return Split()
    offsets = pa.array(np.arange(sentences + 1) * length, pa.int32())
    source, target = (pa.ListArray.from_arrays(offsets, pa.array(words[s])) for s in SIDES)
    file = write_shard(storage.join(folder_uri, _SHARD), source, target)
    tokens, content = sentences * length, content_digest(source, target)
    return Split([ShardInfo(_SHARD, sentences, tokens, tokens, file, content)])

"""Rows of a small table that start from a file, on any number of workers."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding import composed_rows, pretrained
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.pretrained import TableStart
from dist_embed.parallel.group import Group
from dist_embed.vectors import arrays, fasttext_binary, text, word2vec_binary
from dist_embed.vectors.coverage import Coverage
from dist_embed.vectors.formats import open_vectors
from dist_embed.vectors.settings import PretrainedSection
from tests.distributed.pool import WorkerPool

WIDTH, BUCKETS, SEED, FRESH = 4, 5, 3, 0.25
WORDS = ["the", "The", "THE", "2024", "2000", "cafe\u0301", "naïve", ".", "rare", "Straße", "ä1"]
# How rows start from vectors that the test itself opens.
start_from = partial(PretrainedSection, uri="vectors")


def tokenizer() -> Tokenizer:
    return Tokenizer.from_words(
        [*(SPACE + word for word in WORDS), "."], lowercase=False, split_punctuation=True
    )


def start(
    group: Group, uri: str, settings: PretrainedSection, json: str, options: dict[str, Any]
) -> tuple[int, torch.Tensor, Coverage]:
    """On a worker: its first row, its rows, and what was found."""
    with ExitStack() as stack:  # the process serves other tests too
        for module in (text, word2vec_binary, arrays, fasttext_binary):
            block = mock.patch.object(module, "BLOCK_BYTES", options.get("block", 20))
            stack.enter_context(block)
        stack.enter_context(mock.patch.object(pretrained, "_FILL_ROWS", 4))
        parts = options.get("parts", 2**24)
        stack.enter_context(mock.patch.object(composed_rows, "PARTS_AT_ONCE", parts))
        vocabulary = Tokenizer.from_json(json)
        spec = TableSpec("source", vocabulary.size + BUCKETS, options.get("width", WIDTH))
        shard = shard_of(spec.num_rows, group.rank, group.num_workers)
        dtype = options.get("dtype", torch.float32)
        weight = torch.full((shard.num_rows, spec.width), torch.nan, dtype=dtype)
        table = TableStart(
            weight, spec, shard, group, vocabulary, settings, seed=SEED, fresh_scale=FRESH
        )
        file = open_vectors(uri, None, words=options.get("words"))
        found = table.fill(file, options["counts"] if group.is_first else None)
        return shard.first_row, weight, found


def by_id(results: list[Any], num_rows: int) -> NDArray[np.float32]:
    rows = torch.cat([weight for _, weight, _ in sorted(results, key=lambda r: r[0])])
    assert len(rows) == num_rows
    return rows[TableSpec("source", num_rows, 1).order.rows_of(torch.arange(num_rows))].numpy()


def run(
    workers: WorkerPool, num_workers: int, uri: str, settings: PretrainedSection, **options: Any
) -> tuple[NDArray[np.float32], Coverage]:
    vocabulary = options.pop("vocabulary", tokenizer())
    options.setdefault("counts", np.arange(vocabulary.size, 0, -1, dtype=np.int64))
    results = workers.run(num_workers, start, uri, settings, vocabulary.to_json(), options)
    return by_id(results, vocabulary.size + BUCKETS), results[0][2]

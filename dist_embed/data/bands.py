"""Batches of one band of lengths each: how runs went that were begun before there were units.

They go on so, to the bit (`Position.plan`); new runs go by `data/units.py`, and
docs/decisions/0031-batches-of-units.md has why. The order of batches comes from (seed, epoch) and
the lengths alone: any number of workers sees the same global batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.batch import Batch, build_batch
from dist_embed.data.token_shards import ShardInfo, TokenPairs

Indices = NDArray[np.int64]


def plan_batches(
    source_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    batch_tokens: int,
    rng: np.random.Generator,
) -> list[Indices]:
    """Divide sentences into batches whose padded size stays within ``batch_tokens``.

    Sentences are shuffled, then sorted by target and source length (equal lengths stay shuffled),
    cut into batches, and the batches shuffled. A batch's size is its sentences × its longest side.
    A sentence longer than the budget is a batch of its own.

    Args:
        source_lengths: [n] tokens the encoder sees.
        target_lengths: [n] tokens the decoder predicts.
        batch_tokens: the budget.
        rng: the source of all randomness.

    Returns:
        Arrays of indices; together every index once.
    """
    shuffled = rng.permutation(len(source_lengths))
    order = shuffled[np.lexsort((source_lengths[shuffled], target_lengths[shuffled]))]
    longest_side = np.maximum(source_lengths, target_lengths)[order].tolist()
    starts, longest, count = [0], 0, 0
    for place, length in enumerate(longest_side):
        longest, count = max(longest, length), count + 1
        if count > 1 and longest * count > batch_tokens:
            starts.append(place)
            longest, count = length, 1
    batches = np.split(order, starts[1:]) if len(order) else []
    return [batches[i] for i in rng.permutation(len(batches))]


def deal(
    batch: Indices,
    source_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    num_parts: int,
) -> list[Indices]:
    """Divide one batch into ``num_parts`` runs of neighbours with nearly equal token counts.

    Parts are empty where there are fewer sentences than parts.
    """
    cost = np.cumsum(source_lengths[batch] + target_lengths[batch])
    total = cost[-1:].sum()  # of no sentences 0
    # A sentence belongs to the part in which its middle lies.
    middle = cost - (source_lengths[batch] + target_lengths[batch]) / 2
    bounds = np.searchsorted(middle, total * np.arange(1, num_parts) / num_parts)
    return np.split(batch, bounds)


def pools_of_shards(
    shards: list[ShardInfo], pool_sentences: int, rng: np.random.Generator
) -> list[list[ShardInfo]]:
    """The shards of each pool of an epoch."""
    pools: list[list[ShardInfo]] = [[]]
    held = 0
    for place in rng.permutation(len(shards)):
        shard = shards[place]
        if pools[-1] and held + shard.sentences > pool_sentences:
            pools.append([])
            held = 0
        pools[-1].append(shard)
        held += shard.sentences
    return pools


class BandsPool:
    """The steps of one worker on the sentences of a pool.

    Args:
        tokens: of the whole pool.
        batch_tokens: budget of a global batch.
        rng: the source of all randomness.
        rank: this worker.
        num_workers: W.
        accumulate: micro-batches per worker and step.
    """

    def __init__(
        self, tokens: TokenPairs, batch_tokens: int, rng: np.random.Generator, *, rank: int,
        num_workers: int, accumulate: int,
    ) -> None:  # fmt: skip
        self._tokens = tokens
        self._lengths = tokens.source_lengths + 1, tokens.target_lengths + 1  # the end marks
        self._plan = plan_batches(*self._lengths, batch_tokens, rng)
        self._rank, self._num_workers, self._accumulate = rank, num_workers, accumulate

    def __len__(self) -> int:
        return len(self._plan)

    def step(self, number: int) -> tuple[list[Batch], list[list[int]]]:
        """Micro-batches, and of each the target tokens of every worker."""
        # Micro-batch m of worker w is part m * W + w of the batch.
        width = self._num_workers
        parts = deal(self._plan[number], *self._lengths, width * self._accumulate)
        micros = [parts[m * width : (m + 1) * width] for m in range(self._accumulate)]
        return (
            [build_batch(self._tokens, [micro[self._rank]]) for micro in micros],
            [[int(self._lengths[1][part].sum()) for part in micro] for micro in micros],
        )

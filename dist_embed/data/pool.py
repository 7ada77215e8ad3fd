"""A pool: blocks that are planned together, and what one worker reads of them."""

from __future__ import annotations

import numpy as np

from dist_embed.data.batch import Batch, build_batch, merged
from dist_embed.data.pool_sizes import number_of_pools
from dist_embed.data.token_blocks import TokenBlocks
from dist_embed.data.token_shards import TokenPairs
from dist_embed.data.units import Indices, PoolPlan, plan_pool


def pools_of_blocks(
    blocks: TokenBlocks, pool_sentences: int, pool_tokens: int, rng: np.random.Generator
) -> list[Indices]:
    """The blocks of each pool of an epoch, in a new order.

    A pool has about ``pool_sentences``, or sentences of ``pool_tokens`` on their longer side,
    whichever is more; all have about as many, which may be half as many again.
    """
    order = rng.permutation(len(blocks))
    order = order[blocks.sentences[order] > 0]
    sentences = blocks.sentences[order]
    total = max(1, int(sentences.sum()))
    tokens = max(int(blocks.source_tokens.sum()), int(blocks.target_tokens.sum())) + total
    wanted = max(pool_sentences, pool_tokens * total // tokens)
    num_pools = number_of_pools(total, wanted)
    middle = np.cumsum(sentences) - sentences / 2
    pool = (middle * num_pools / total).astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(pool)) + 1)


class UnitsPool:
    """The steps of one worker on the sentences of a pool.

    Args:
        plan: of the whole pool.
        tokens: the sentences from ``first`` on that this worker has read.
        first: of the pool's sentences.
        rank: this worker.
        num_workers: W.
        accumulate: micro-batches per worker and step.
    """

    def __init__(
        self, plan: PoolPlan, tokens: TokenPairs, first: int, *, rank: int, num_workers: int,
        accumulate: int,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._tokens = tokens
        self._first = first
        self._rank, self._num_workers, self._accumulate = rank, num_workers, accumulate
        self._lengths = tokens.source_lengths + 1, tokens.target_lengths + 1  # the end marks

    def __len__(self) -> int:
        return len(self._plan)

    def step(self, number: int) -> tuple[list[Batch], list[list[int]]]:
        """Micro-batches, and of each the target tokens of every worker."""
        # Micro-batch m of worker w is part w * A + m: so a worker's streams are neighbours.
        bounds = self._plan.parts(number, self._num_workers * self._accumulate)
        counts = np.reshape(self._plan.target_tokens(bounds), (self._num_workers, self._accumulate))
        batches = []
        for micro in range(self._accumulate):
            part = self._rank * self._accumulate + micro
            units = self._plan.rectangles(*bounds[part : part + 2])
            own = [unit - self._first for unit in units]
            batches.append(build_batch(self._tokens, merged(own, self._lengths)))
        return batches, counts.T.tolist()


def read_pool(
    blocks: TokenBlocks, numbers: Indices, batch_tokens: int, rng: np.random.Generator, *,
    rank: int, num_workers: int, accumulate: int, num_ids: dict[str, int] | None,
) -> UnitsPool:  # fmt: skip
    """Plan the pool of the blocks ``numbers`` and read this worker's part of it."""
    source_lengths, target_lengths = blocks.lengths(numbers.tolist())
    sentences = blocks.sentences[numbers]
    plan = plan_pool(
        source_lengths + 1, target_lengths + 1, sentences.tolist(), batch_tokens, rng
    )  # with the end marks
    own = plan.blocks(rank * accumulate, (rank + 1) * accumulate, num_workers * accumulate)
    tokens = blocks.read(numbers[own.start : own.stop].tolist(), num_ids)
    return UnitsPool(
        plan, tokens, int(sentences[: own.start].sum()), rank=rank, num_workers=num_workers,
        accumulate=accumulate,
    )  # fmt: skip

"""How full and how even a step's batches are, and what a worker reads for them.

A simulation of one pool, by the functions that training plans with; lengths are drawn, or those of
prepared data. A step waits for the worker that has most to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dist_embed.data.batch import merged
from dist_embed.data.pool import pools_of_blocks
from dist_embed.data.pool_sizes import POOL_SENTENCES, POOL_STEPS
from dist_embed.data.token_blocks import TokenBlocks, open_blocks
from dist_embed.data.token_shards import PreparedData, TokenPairs
from dist_embed.data.units import Indices, PoolPlan, plan_pool

LEAST_FILL, MOST_SKEW, MOST_READ = 0.85, 1.05, 1.3
# What a lognormal corpus' longer sides are on average, and the sentences of its blocks.
_MEAN, _BLOCK = 30, 2_500


@dataclass(frozen=True)
class BatchBalance:
    """Of the steps of one pool.

    Attributes:
        workers: W.
        sentences: of the pool.
        steps: of the pool.
        fill: target tokens ÷ budget.
        skew: of the steps looked at, padded work of the slowest worker ÷ mean; rectangles as they
            are run, sentences × (longest source + longest target).
        rectangles: of a worker and step, on average.
        read: by the bytes of the pool ÷ W: those of the blocks that a worker reads; mean, and most.
        plan_seconds: to plan the pool, of CPU.
    """

    workers: int
    sentences: int
    steps: int
    fill: float
    skew: list[float]
    rectangles: float
    read: tuple[float, float]
    plan_seconds: float


class LognormalBlocks(TokenBlocks):
    """Blocks of sentences with lognormal lengths: mean 26, the target 1.08 times as long."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(1)
        source = np.clip(rng.lognormal(3.1, 0.6, count), 2, 256)
        target = np.clip(source * rng.lognormal(0.05, 0.25, count), 2, 256)
        self._sides = [side.astype(np.int64) - 1 for side in (source, target)]
        self._first = np.arange(0, count, _BLOCK)
        self.sentences = np.diff(self._first, append=count)
        self.source_tokens, self.target_tokens = (
            np.add.reduceat(side, self._first) for side in self._sides
        )
        self.stored_bytes = self.source_tokens + self.target_tokens  # as if of a byte each

    def lengths(self, blocks: Sequence[int]) -> tuple[Indices, Indices]:
        """Those of the sentences, block by block."""
        places = np.concatenate(
            [self._first[block] + np.arange(self.sentences[block]) for block in blocks]
        )
        return self._sides[0][places], self._sides[1][places]

    def _packed_lengths(self, block: int) -> bytes:
        raise NotImplementedError("there are lengths alone")

    def _fetch(
        self, blocks: Sequence[int], num_ids: dict[str, int] | None
    ) -> dict[int, TokenPairs]:
        raise NotImplementedError("there are lengths alone")


def batch_balance_report(
    data: PreparedData | None, workers: Sequence[int], *, tokens: int, steps: int,
    say: Callable[[str], None],
) -> list[BatchBalance]:  # fmt: skip
    """Plan the first pool of a run on each number of workers.

    Args:
        data: whose training pairs it is of; None: lognormal lengths.
        workers: numbers of them.
        tokens: of the budget, a worker.
        steps: so many are looked at for what takes long to find.
        say: takes lines for the user.
    """
    found = []
    for num_workers in dict.fromkeys(workers):
        say(f"{num_workers:,} workers")
        budget = tokens * num_workers
        if data is None:
            blocks: TokenBlocks = LognormalBlocks(max(POOL_SENTENCES, POOL_STEPS * budget // _MEAN))
        else:
            blocks = open_blocks(data, "train")
        found.append(_of_pool(blocks, num_workers, budget, steps))
    return found


def _of_pool(blocks: TokenBlocks, num_workers: int, budget: int, steps: int) -> BatchBalance:
    order = np.random.default_rng([0, 0, 0])
    numbers = pools_of_blocks(blocks, POOL_SENTENCES, POOL_STEPS * budget, order)[0]
    source, target = blocks.lengths(numbers.tolist())
    lengths = source + 1, target + 1
    started = time.process_time()
    plan = plan_pool(
        *lengths, blocks.sentences[numbers].tolist(), budget, np.random.default_rng([0, 0, 1])
    )
    seconds = time.process_time() - started
    chosen = np.unique(np.linspace(0, len(plan) - 1, steps).astype(int)).tolist()
    looked_at = [_step(plan, step, num_workers, lengths) for step in chosen]
    stored = blocks.stored_bytes[numbers]
    part = [
        int(stored[own.start : own.stop].sum())
        for own in (plan.blocks(rank, rank + 1, num_workers) for rank in range(num_workers))
    ]
    share = max(1.0, float(stored.sum())) / num_workers
    return BatchBalance(
        workers=num_workers,
        sentences=len(plan.order),
        steps=len(plan),
        fill=float(plan.targets[-1]) / (len(plan) * budget),
        skew=[float(work.max() / work.mean()) for work, _ in looked_at],
        rectangles=float(np.mean([count for _, count in looked_at])) / num_workers,
        read=(float(np.mean(part)) / share, max(part) / share),
        plan_seconds=seconds,
    )


def _step(
    plan: PoolPlan, step: int, num_workers: int, lengths: tuple[Indices, Indices]
) -> tuple[Indices, int]:
    """Padded work of each worker, and the rectangles of all."""
    bounds = plan.parts(step, num_workers)
    work, count = np.zeros(num_workers, np.int64), 0
    for worker in range(num_workers):
        for rectangle in merged(plan.rectangles(*bounds[worker : worker + 2]), lengths):
            work[worker] += len(rectangle) * sum(int(side[rectangle].max()) for side in lengths)
            count += 1
    return work, count


def batch_balance_table(found: Sequence[BatchBalance]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = [
        "workers", "sentences", "steps", "fill", "slowest ÷ mean", "worst step",
        "rectangles a worker", "read: mean", "most", "CPU s to plan", "ms a step",
    ]  # fmt: skip
    rows = [
        [f"{one.workers:,}", f"{one.sentences:,}", f"{one.steps:,}", f"{one.fill:.3f}",
         f"{np.mean(one.skew):.3f}", f"{max(one.skew):.3f}", f"{one.rectangles:.1f}",
         f"{one.read[0]:.2f}", f"{one.read[1]:.2f}", f"{one.plan_seconds:.2f}",
         f"{1000 * one.plan_seconds / one.steps:.1f}"]
        for one in found
    ]  # fmt: skip
    return header, rows


def batch_balance_figures(found: Sequence[BatchBalance], tokens: int) -> dict[str, Any]:
    """For a JSON file."""
    return {"tokens": tokens, "batches": [asdict(one) for one in found]}

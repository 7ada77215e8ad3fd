"""How evenly rows, and what a step asks of them, lie over the workers."""

from __future__ import annotations

from dist_embed.embedding.plan import shard_of
from dist_embed.planning.step import Step

# Words whose place is looked up one by one; rarer ones are many on every worker.
_LOOKED_UP = 4096


def rows_per_worker(step: Step) -> tuple[int, int]:
    """The fewest and the most rows, of all tables, that a worker holds."""

    def held(rank: int) -> int:
        specs = step.specs.values()
        return sum(shard_of(spec.num_rows, rank, step.workers).num_rows for spec in specs)

    return held(step.workers - 1), held(0)


def request_balance(step: Step) -> float:
    """Rows that the worker is asked for which is asked for most, by the mean of all; 1: equal.

    Of all `Step.distinct_rows`: a row is asked for by a worker at most once a step, so the most
    frequent words count as many times as there are workers, negatives once. Of one table it is what
    `bench balance` expects (docs/benchmarks/balance.md).
    """
    if step.workers == 1:
        return 1.0
    asked, rest = [0.0] * step.workers, 0.0
    for table, spec in step.specs.items():
        shard = shard_of(spec.num_rows, 0, step.workers).physical_rows
        multiplier = spec.order.multiplier
        for group, likely in step.asked(table, step.head):
            end = group.first + group.count
            behind = min(max(group.first, _LOOKED_UP), end)
            for word in range(group.first, behind):
                asked[(word * multiplier) % spec.num_rows // shard] += likely
            rest += (end - behind) * likely
    mean = (sum(asked) + rest) / step.workers
    return (max(asked) + rest / step.workers) / mean if mean else 1.0

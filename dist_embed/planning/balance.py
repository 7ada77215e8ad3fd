"""How evenly rows, and what a step asks of them, lie over the workers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.planning.words import Asked

# Words whose place is looked up one by one; rarer ones are many on every worker.
_LOOKED_UP = 4096


def rows_per_worker(specs: Collection[TableSpec], workers: int) -> tuple[int, int]:
    """The fewest and the most rows, of all tables, that a worker holds."""

    def held(rank: int) -> int:
        return sum(shard_of(spec.num_rows, rank, workers).num_rows for spec in specs)

    return held(workers - 1), held(0)


def request_balance(
    specs: Mapping[str, TableSpec], words: Mapping[str, Asked], workers: int
) -> float:
    """Rows that the worker is asked for which is asked for most, by the mean of all; 1: equal.

    Of all ``words`` that a worker asks for, by table: for a row each does at most once a step, so
    the most frequent words count as many times as there are workers, negatives once. Of one table
    it is what `bench balance` expects (docs/benchmarks/balance.md).
    """
    if workers == 1:
        return 1.0
    asked, rest = [0.0] * workers, 0.0
    for table, spec in specs.items():
        shard = shard_of(spec.num_rows, 0, workers).physical_rows
        multiplier = spec.order.multiplier
        for group, likely in words[table]:
            end = group.first + group.count
            behind = min(max(group.first, _LOOKED_UP), end)
            for word in range(group.first, behind):
                asked[(word * multiplier) % spec.num_rows // shard] += likely
            rest += (end - behind) * likely
    mean = (sum(asked) + rest) / workers
    return (max(asked) + rest / workers) / mean if mean else 1.0

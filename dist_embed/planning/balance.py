"""How evenly rows, and what a step asks of them, lie over the workers."""

from __future__ import annotations

import math

from dist_embed.embedding.plan import shard_of
from dist_embed.model.translation_tables import TABLE_OF_ROLE
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

    Of the table of target words, by a step's target tokens: a word's row is asked for by a worker
    at most once a step, so the most frequent words count as many times as there are workers. Source
    words, and negatives, which are drawn once for all, are left out.
    """
    if step.workers == 1:
        return 1.0
    spec = step.specs[TABLE_OF_ROLE[step.config.model.share_embeddings]["target"]]
    words = step.text.words["target"]
    tokens = step.padded_tokens * step.text.target_share
    shard = shard_of(spec.num_rows, 0, step.workers).physical_rows
    multiplier, asked = spec.order.multiplier, [0.0] * step.workers
    rest = 0.0
    for group in words:
        wanted = 1.0 - math.exp(tokens * math.log1p(-min(group.probability, 1 - 1e-12)))
        end = group.first + group.count
        behind = min(max(group.first, _LOOKED_UP), end)
        for word in range(group.first, behind):
            asked[(word * multiplier) % spec.num_rows // shard] += wanted
        rest += (end - behind) * wanted
    mean = (sum(asked) + rest) / step.workers
    return (max(asked) + rest / step.workers) / mean if mean else 1.0

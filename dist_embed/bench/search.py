"""What one of many workers receives, and does, to merge their best words for its hypotheses.

Its peers are not there: their lists are random ones of the size they have. What it does before,
the products with its own rows, is measured by `bench output`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dist_embed.bench.passes import WARM_UP, median_seconds
from dist_embed.model.output import OutputShard
from dist_embed.model.top_words import best_of_shard, merge_shards
from dist_embed.parallel.group import Group


def measure_merging(
    workers: Sequence[int], hypotheses: int, beam: int, num_rows: int, repeats: int
) -> list[dict[str, float]]:
    """Bytes received and median seconds of one step of the beam, for each number of workers.

    Args:
        workers: how many send their lists.
        hypotheses: of one worker.
        beam: decides how many words each list has.
        num_rows: V, whose shards have as many rows as a list has words, or more.
        repeats: merges that are timed.
    """
    cpu, words = torch.device("cpu"), 2 * beam + 2
    shard = OutputShard(Group(0, 1, 1, cpu, None), 0, num_rows, 2**20)  # type: ignore[arg-type]
    found = []
    for number in workers:
        own = [
            best_of_shard(
                torch.randn(hypotheses, 4), torch.randn(words, 4),
                torch.randint(num_rows, (words,)), shard, words,
            )
            for _ in range(number)
        ]  # fmt: skip
        received = torch.stack(own)
        seconds = median_seconds(partial(_merge, received, words), range(WARM_UP + repeats), cpu)
        found.append({"workers": number, "bytes": received.nbytes, "seconds": seconds})
    return found


def _merge(received: Tensor, words: int, _: int) -> None:
    merge_shards(received, words)

"""What workers exchange to find the best words, and what each finds, against one process."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from dist_embed.model.output import OutputShard
from dist_embed.model.top_words import top_log_probabilities
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.unit.listed_words import TOKENS, reference, whole_numbers

K = 7
# Rows of the workers, and tokens.
CASES = {
    1: ([26], [TOKENS]),
    2: ([5, 21], [TOKENS, 0]),  # fewer rows than words that are wanted
    3: ([13, 12, 1], [4, 0, TOKENS - 4]),
}


def found_by(group: Group, shards: list[int], tokens: list[int]) -> tuple[Any, Any, int]:
    """What this worker finds, and how many bytes of candidates it receives."""
    hidden, weight, ids = whole_numbers(sum(shards))
    received = []
    exchange = dist.all_to_all_single

    def counted(out: torch.Tensor, *given: Any, **how: Any) -> Any:
        received.append(out.nbytes)
        return exchange(out, *given, **how)

    with mock.patch.object(dist, "all_to_all_single", counted):
        values, words = top_log_probabilities(
            hidden.split(tokens)[group.rank], weight.split(shards)[group.rank],
            ids.split(shards)[group.rank],
            OutputShard(group, sum(shards[: group.rank]), sum(shards), 10**6), tokens, K,
        )  # fmt: skip
    return values, words, sum(received)


@pytest.mark.parametrize("num_workers", CASES)
def test_every_worker_finds_the_words_of_its_tokens(workers: WorkerPool, num_workers: int) -> None:
    shards, tokens = CASES[num_workers]
    expected = reference(*whole_numbers(sum(shards)), shards, K)
    found = workers.run(num_workers, found_by, shards, tokens)
    for rank, (values, words, received) in enumerate(found):
        assert torch.equal(values, expected[0].split(tokens)[rank])
        assert torch.equal(words, expected[1].split(tokens)[rank])
        # A maximum, a sum, and a value and an id of each word, of every worker for own tokens.
        assert received == (num_workers > 1) * num_workers * tokens[rank] * (2 + 2 * K) * 4

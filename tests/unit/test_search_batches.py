"""Which sentences are searched together."""

from __future__ import annotations

import random

import pytest

from dist_embed.model.search_batches import batches_within


@pytest.mark.parametrize(
    ("lengths", "budget", "batches"),
    [
        ([], 9, []),
        ([3], 1, [[0]]),  # alone, it may have more
        # Padded to its longest and with end marks: 3 × (2 + 1), and 2 × (4 + 1) would be too many.
        ([4, 2, 1, 2], 9, [[2, 1, 3], [0]]),
        ([4, 2, 1, 2], 8, [[2, 1], [3], [0]]),
        ([0, 0, 0], 2, [[0, 1], [2]]),
    ],
)
def test_a_batch_is_filled_to_its_budget(
    lengths: list[int], budget: int, batches: list[list[int]]
) -> None:
    assert batches_within(lengths, budget) == batches


def test_a_long_sentence_has_few_beside_it() -> None:
    draws = random.Random(1)
    lengths = [*(draws.randrange(5, 31) for _ in range(63)), 8000]
    batches = batches_within(lengths, 2048)
    assert batches[-1] == [63]
    assert sorted(place for batch in batches for place in batch) == list(range(64))
    # Ordinary ones are as many together as before.
    assert [len(batch) for batch in batches] == [63, 1]

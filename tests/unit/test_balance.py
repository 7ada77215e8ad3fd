from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

import numpy as np
import pytest

from dist_embed.bench import balance
from dist_embed.bench.balance import (
    AIMS,
    asked_of_shards,
    balance_report,
    expected_of_shards,
)
from dist_embed.data.zipf import zipf, zipf_probability
from dist_embed.embedding.plan import shard_of
from dist_embed.embedding.row_order import RowOrder
from dist_embed.errors import UserError


def test_words_follow_zipfs_law() -> None:
    num_words, count = 50, 200_000
    found = np.bincount(zipf(np.random.default_rng(1), num_words, count), minlength=num_words)
    ids = np.arange(num_words)
    expected = count * np.log((ids + 2) / (ids + 1)) / np.log(num_words + 1)
    assert count * zipf_probability(ids, num_words) == pytest.approx(expected)
    assert found.shape == (num_words,)
    # Five standard deviations of a binomial count at most.
    assert float((np.abs(found - expected) / np.sqrt(expected)).max()) < 5


@pytest.mark.parametrize(("num_rows", "num_shards"), [(100, 3), (41, 8), (5, 4), (1000, 1)])
def test_requests_are_those_of_a_plain_count(num_rows: int, num_shards: int) -> None:
    tokens, seed = 60, 7
    shards = [shard_of(num_rows, rank, num_shards) for rank in range(num_shards)]
    multiplier = RowOrder(num_rows).multiplier

    def asked() -> Iterator[int]:
        for worker in range(num_shards):
            yield from set(zipf(np.random.default_rng([seed, worker]), num_rows, tokens).tolist())

    ids = list(asked())
    rows = [id_ * multiplier % num_rows for id_ in ids]
    spread, plain = asked_of_shards(num_rows, num_shards, tokens, seed)
    for found, wanted in ((spread, rows), (plain, ids)):
        held = [sum(s.first_row <= row < s.end_row for row in wanted) for s in shards]
        assert found.tolist() == held


@pytest.mark.parametrize(("num_rows", "num_shards"), [(100, 3), (41, 8), (5, 4), (1, 1), (1, 2)])
def test_steps_ask_for_what_is_expected(
    num_rows: int, num_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, steps = 20, 400
    monkeypatch.setattr(balance, "_BLOCK", 16)
    expected = balance.expected_of_shards(num_rows, num_shards, tokens) * num_shards
    found = np.array([asked_of_shards(num_rows, num_shards, tokens, s)[0] for s in range(steps)])
    error = found.std(axis=0) / steps**0.5
    assert float((np.abs(found.mean(axis=0) - expected) - 5 * error).max()) < 1e-9


# As many steps as a steady mean takes: on few shards the chance of a single step exceeds the aim.
@pytest.mark.parametrize(("num_shards", "steps"), [(2, 40), (8, 40), (64, 3), (1024, 1)])
def test_the_bijection_alone_keeps_within_the_aims(num_shards: int, steps: int) -> None:
    [found] = balance_report(
        [1_000_000], [num_shards], tokens=8192, steps=steps, say=lambda _: None
    )
    aim = AIMS[num_shards]
    assert len(found.bijection) == len(found.row_is_id) == steps
    assert found.expected <= aim
    assert mean(found.bijection) <= aim
    assert min(found.row_is_id) > 1.5 * aim


@pytest.mark.parametrize("num_shards", AIMS)
def test_the_largest_table_keeps_within_the_aims(num_shards: int) -> None:
    asked = expected_of_shards(10_000_000, num_shards, 8192)
    assert float(asked.max() / asked.mean()) <= AIMS[num_shards]


def test_a_table_too_large_is_refused() -> None:
    with pytest.raises(UserError, match="--rows: 2147483648 is not allowed"):
        balance_report([10, 2**31], [2], tokens=8, steps=1, say=lambda _: None)

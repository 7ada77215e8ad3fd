from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.errors import UserError
from dist_embed.model.sampler import (
    LogUniformSampler,
    Negatives,
    Sampler,
    UnigramSampler,
    _negatives,
)

COUNTS = np.array([0, 7, 0, 900, 512, 300, 40, 39, 8, 2, 1, 1, 1, 0] + [1] * 86)


def samplers(num_ids: int, num_samples: int) -> list[Sampler]:
    counts = np.sort(np.random.default_rng(3).zipf(1.3, num_ids).clip(max=10**9))[::-1]
    return [
        LogUniformSampler(num_ids, num_samples),
        UnigramSampler(counts, 0.75, num_samples),
        UnigramSampler(counts, 0.0, num_samples),
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.data())
def test_a_draw_holds_s_different_ids_of_the_vocabulary(num_ids: int, data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, num_ids))
    step = data.draw(st.integers(0, 10**6))
    for sampler in samplers(num_ids, num_samples):
        drawn = sampler.draw(1, step)
        assert drawn.ids.shape == drawn.log_probability.shape == (num_samples,)
        assert drawn.ids.unique().tolist() == drawn.ids.tolist()
        assert 0 <= int(drawn.ids[0]) <= int(drawn.ids[-1]) < num_ids
        pi = sampler.probability_of(np.arange(num_ids))
        assert pi.sum() == pytest.approx(num_samples)
        assert pi.min() > 0
        assert pi.max() <= 1 + 1e-9
        np.testing.assert_allclose(drawn.log_probability, np.log(pi[drawn.ids]), atol=1e-6)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ([4, 4, 10], [4, 5, 9]),
        ([8, 9, 9], [7, 8, 9]),
        ([0, 0, 0], [0, 1, 2]),
        ([1, 5, 9], [1, 5, 9]),
    ],
)
def test_ids_that_rounding_brings_together_are_parted(
    drawn: list[int], expected: list[int]
) -> None:
    sampler = LogUniformSampler(10, 3)
    found = _negatives(sampler, np.array(drawn), 10)
    assert found.ids.tolist() == expected
    pi = sampler.probability_of(np.array(expected))
    np.testing.assert_allclose(found.log_probability, np.log(pi), rtol=1e-6)


@pytest.mark.parametrize("num_ids", [1, 2, 50, 1000])
def test_all_ids_are_drawn_where_s_is_v(num_ids: int) -> None:
    for sampler in samplers(num_ids, num_ids):
        drawn = sampler.draw(5, 7)
        assert drawn.ids.tolist() == list(range(num_ids))
        assert drawn.log_probability.abs().max() < 1e-6


@pytest.mark.parametrize(
    "sampler",
    [
        LogUniformSampler(100, 10),
        LogUniformSampler(1000, 300),
        UnigramSampler(COUNTS, 0.75, 12),
        UnigramSampler(COUNTS, 1.0, 40),
        UnigramSampler(COUNTS, 0.0, 7),
    ],
)
def test_ids_are_drawn_as_often_as_the_correction_says(sampler: Sampler) -> None:
    """Over n draws the count of an id is binomial: within 5 standard deviations of n π.

    And what they are off by in standard deviations has squares whose mean is 1, within 5 of its
    own: that finds a π that is a little wrong for many ids, of which none alone is far off.
    """
    draws = 4000
    ids = torch.cat([sampler.draw(11, step).ids for step in range(draws)])
    num_ids = int(ids.max()) + 1
    found = np.bincount(ids.numpy(), minlength=num_ids)
    pi = sampler.probability_of(np.arange(num_ids))
    spread = np.sqrt(draws * pi * (1 - pi).clip(min=0))
    off = np.abs(found - draws * pi)
    assert (off <= 5 * spread + 1e-6).all()
    uncertain = spread > 1e-3
    squares = (off[uncertain] / spread[uncertain]) ** 2
    assert squares.mean() < 1 + 5 * (2 / len(squares)) ** 0.5


def test_pi_follows_the_law_behind_the_certain_ids() -> None:
    """Where none is certain, π is S log((i + 2) / (i + 1)) / log(V + 1)."""
    ids = np.arange(10**6)
    pi = LogUniformSampler(10**6, 10).probability_of(ids)
    np.testing.assert_allclose(pi, 10 * np.log((ids + 2) / (ids + 1)) / np.log(10**6 + 1))
    more = LogUniformSampler(10**6, 8192).probability_of(ids)
    certain = int((more == 1).sum())
    assert 500 < certain < 1500
    ratio = more[certain:] / pi[certain:]
    np.testing.assert_allclose(ratio, ratio[0])
    assert more[certain] <= 1


def test_unigram_powers() -> None:
    pi = UnigramSampler(COUNTS, 0.75, 5).probability_of(np.arange(len(COUNTS)))
    uncertain = (pi < 1 - 1e-9).nonzero()[0]
    weight = np.maximum(COUNTS[uncertain], 1) ** 0.75
    np.testing.assert_allclose(pi[uncertain] / weight, pi[uncertain[0]] / weight[0])


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    for make in (lambda: LogUniformSampler(5000, 64), lambda: UnigramSampler(COUNTS, 0.5, 20)):
        first, second = make(), make()
        for seed, step in itertools.product((1, 2), (1, 2, 900)):
            assert torch.equal(first.draw(seed, step).ids, second.draw(seed, step).ids)
        assert not torch.equal(first.draw(1, 1).ids, first.draw(1, 2).ids)
        assert not torch.equal(first.draw(1, 1).ids, first.draw(2, 1).ids)


def test_large_vocabularies_take_memory_for_the_samples_only() -> None:
    drawn = LogUniformSampler(2**31 - 1, 4096).draw(1, 1)
    assert drawn.ids.numel() == drawn.ids.unique().numel() == 4096
    assert int(drawn.ids[-1]) < 2**31 - 1


def test_places_of_ids_among_the_samples() -> None:
    drawn = Negatives(torch.tensor([1, 4, 9]), torch.zeros(3))
    assert drawn.place_of(torch.tensor([[9, 0], [4, 100]])).tolist() == [[2, -1], [1, -1]]


@pytest.mark.parametrize("num_samples", [0, -1, 11])
def test_more_samples_than_ids_are_refused(num_samples: int) -> None:
    expected = f"num_samples: {num_samples} is not allowed: a whole number in 1 … 10"
    with pytest.raises(UserError, match=expected):
        LogUniformSampler(10, num_samples)
    with pytest.raises(UserError, match=expected):
        UnigramSampler(np.ones(10, dtype=np.int64), 1.0, num_samples)


@pytest.mark.parametrize(
    ("counts", "power", "num_samples", "expected"),
    [([1, 2], 1.0, 2.5, "num_samples: 2.5 is not allowed: a whole number in 1 … 2"),
     ([1, 2], 1.0, True, "num_samples: True is not allowed"),
     ([1, 2], math.nan, 1, "power: nan is not allowed: a number, at least 0"),
     ([1, 2], -1, 1, "power: -1 is not allowed"), ([1, 2], "1", 1, "power: '1' is not allowed"),
     ([1, 10**9], 99, 1, "power: 99 is not allowed: 1,000,000,000, the largest count"),
     ([1, -2], 1.0, 1, r"counts\[1\]: -2 is not allowed: at least 0"),
     ([1.5, 2], 1.0, 1, r"counts: \[1.5, 2\] of type float64 is not allowed"),
     ([math.nan, 2], 1.0, 1, r"counts: \[nan, 2\] of type float64"),
     ([True], 1.0, 1, "of type bool"), ([[1], [2]], 1.0, 1, "an array of a whole number for each"),
     ([], 1.0, 1, r"counts: \[\]"), (None, 1.0, 1, "counts: None"), ([[1], 2], 1.0, 1, "counts: ")],
)  # fmt: skip
def test_what_are_no_counts_is_refused(
    counts: Any, power: Any, num_samples: Any, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        UnigramSampler(counts, power, num_samples)


def test_counts_may_be_of_any_type_of_whole_numbers() -> None:
    expected = UnigramSampler(np.array([5, 0, 3]), 0.75, 2).probability_of(np.arange(3))
    given: list[Any] = [[5, 0, 3], torch.tensor([5, 0, 3]), np.array([5, 0, 3], np.uint64)]
    for counts in given:
        found = UnigramSampler(counts, 0.75, 2).probability_of(np.arange(3))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("seed", "step"), [(0.5, 1), (-1, 1), (1, -1), (1, "2"), (1, True)])
def test_a_draw_is_of_a_whole_seed_and_step(seed: Any, step: Any) -> None:
    with pytest.raises(UserError, match="is not allowed: a whole number, at least 0"):
        LogUniformSampler(10, 3).draw(seed, step)

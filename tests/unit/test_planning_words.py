from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.model.sampler import LogUniformSampler
from dist_embed.planning.words import (
    Group,
    Words,
    asked_words,
    by_rank,
    counted_words,
    rarer,
    sampled,
    zipf_words,
)


def distinct(words: Words, draws: float, also: Callable[[Group], float] | None = None) -> float:
    """How many different words are expected."""
    return math.fsum(group.count * likely for group, likely in asked_words(words, draws, also))


@pytest.mark.parametrize("num_words", [1, 10, 1000, 10**9])
def test_groups_are_all_words_once_and_their_probabilities_add_up(num_words: int) -> None:
    words = zipf_words(num_words)
    assert [group.first for group in words] == [
        sum(group.count for group in words[:place]) for place in range(len(words))
    ]
    assert sum(group.count for group in words) == num_words
    assert math.fsum(group.count * group.probability for group in words) == pytest.approx(1)
    assert len(words) < 1000


def test_distinct_words_are_what_counting_them_finds() -> None:
    rank = np.arange(20_000)
    probability = np.log1p(1 / (rank + 1)) / np.log1p(20_000)
    expected = float((1 - (1 - probability) ** 3000).sum())
    assert distinct(zipf_words(20_000), 3000) == pytest.approx(expected, rel=0.005)
    draw = np.random.default_rng(0)
    found = np.mean([len(np.unique(draw.choice(20_000, 3000, p=probability))) for _ in range(20)])
    assert distinct(zipf_words(20_000), 3000) == pytest.approx(found, rel=0.02)


def test_counted_words_are_ordered_by_how_often_they_occur() -> None:
    # Two words that occur 3 times, four that occur once: 10 words of text.
    words = counted_words([(1, 4), (3, 2)])
    assert words == [Group(0, 2, 0.3), Group(2, 4, 0.1)]
    assert distinct(words, 1) == pytest.approx(1)
    assert distinct(words, 10**6) == pytest.approx(6)


def test_rarer_words_are_what_is_left_of_groups() -> None:
    words = counted_words([(1, 4), (3, 2)])
    assert rarer(words, 0) == words
    assert rarer(words, 3) == [Group(3, 3, 0.1)]
    assert rarer(words, 6) == []


def test_a_text_of_one_word_has_one() -> None:
    assert distinct(counted_words([(5, 1)]), 100) == 1


@pytest.mark.parametrize(("num_words", "samples"), [(1000, 10), (1000, 500), (50, 50)])
def test_samples_are_as_likely_as_the_sampler_has_them(num_words: int, samples: int) -> None:
    words = zipf_words(num_words)
    likely = sampled(words, samples, by_rank)
    assert math.fsum(g.count * likely(g) for g in words) == pytest.approx(samples, rel=0.02)
    sampler = LogUniformSampler(num_words, samples)
    for group in words[::20]:
        ids = np.arange(group.first, group.first + group.count)
        mean = float(sampler.probability_of(ids).mean())
        assert likely(group) == pytest.approx(mean, rel=0.1, abs=0.02)


def test_what_is_there_anyway_is_counted_once() -> None:
    words = zipf_words(100)
    assert distinct(words, 50, lambda group: 1.0) == pytest.approx(100)
    assert distinct(words, 0, lambda group: 0.5) == pytest.approx(50)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_draws_find_no_fewer_words(num_words: int, fewer: int, more: int) -> None:
    words = zipf_words(num_words)
    low, high = (distinct(words, draws) for draws in sorted((fewer, more)))
    assert 0 <= low <= high * (1 + 1e-9) + 1e-9
    assert high <= min(num_words, max(fewer, more)) * (1 + 1e-6) + 1e-6

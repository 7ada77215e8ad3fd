from __future__ import annotations

import re

import numpy as np
import pytest

from dist_embed.data.languages.stems import spelled, zipf_bounds

ONSETS = ["b", "br", "r", "st"]
VOWELS = "aou"


@pytest.mark.parametrize(("count", "syllables"), [(1, 2), (144, 2), (145, 3), (12**3, 3)])
def test_every_number_has_its_own_stem(count: int, syllables: int) -> None:
    stems = spelled(np.arange(count)[::-1].copy(), ONSETS, VOWELS).to_pylist()
    assert len(set(stems)) == count
    shape = re.compile(f"((b|br|r|st)[aou]){{{syllables}}}")
    assert all(shape.fullmatch(stem) for stem in stems)


def test_a_number_is_spelled_in_the_number_system_of_the_syllables() -> None:
    assert spelled(np.array([13, 0]), ONSETS, VOWELS).to_pylist() == ["bobo", "baba"]
    assert spelled(np.array([35, 143]), ONSETS, VOWELS).to_pylist() == ["bustu", "stustu"]
    assert spelled(np.arange(145), ONSETS, VOWELS).to_pylist()[-1] == "bobaba"


def test_shares_fall_by_the_power_of_the_rank() -> None:
    assert zipf_bounds(4, 1.0) == pytest.approx([12 / 25, 18 / 25, 22 / 25])
    assert zipf_bounds(4, 0.0) == pytest.approx([0.25, 0.5, 0.75])
    assert zipf_bounds(3, 2.0) == pytest.approx([36 / 49, 45 / 49])
    assert len(zipf_bounds(1, 1.0)) == 0

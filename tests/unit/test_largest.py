"""The search for the largest vocabulary that trains."""

from __future__ import annotations

from typing import Any

import pytest

from dist_embed.bench import vocabulary_memory
from dist_embed.bench.vocabulary_memory import FIRST_WORDS, largest
from dist_embed.errors import RunFailed


def found(limit: int, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[int, int], list[int]]:
    tried: list[int] = []

    def measure(num_words: int, **how: Any) -> Any:
        assert how == {"num_workers": 2, "folder": None, "say": print}
        tried.append(num_words)
        return {} if num_words <= limit else None

    monkeypatch.setattr(vocabulary_memory, "measure_memory", measure)
    sizes = largest(lambda num_words: num_words, num_workers=2, say=print)  # type: ignore[arg-type, return-value]
    return sizes, tried


@pytest.mark.parametrize("limit", [30_000, 70_000, FIRST_WORDS - 1, FIRST_WORDS, 1_900_000])
def test_both_sizes_were_tried(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (held, failed), tried = found(limit, monkeypatch)
    assert {held, failed} <= set(tried)
    assert held <= limit < failed
    assert failed - held <= held / 4


def test_where_nothing_trains_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match="not even"):
        found(10, monkeypatch)


@pytest.mark.parametrize(
    ("limit", "tries"),
    [
        (70_000, [250_000, 125_000, 62_500, 93_750, 78_125]),
        (600_000, [250_000, 500_000, 1_000_000, 750_000, 625_000]),
        (8000, [250_000, 125_000, 62_500, 31_250, 15_625, 7812, 11_718, 9765]),
    ],
)
def test_sizes_are_doubled_or_halved_and_the_gap_halved_twice(
    limit: int, tries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tried = found(limit, monkeypatch)
    assert tried == tries


def test_the_least_size_is_the_last_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(
        vocabulary_memory, "measure_memory",
        lambda num_words, **how: tried.append(num_words),
    )  # fmt: skip
    with pytest.raises(RunFailed, match="not even 7,812 words train here"):
        largest(lambda num_words: num_words, num_workers=2, say=print)  # type: ignore[arg-type, return-value]
    assert tried == [250_000, 125_000, 62_500, 31_250, 15_625, 7812]

"""Which entry of a file a row starts from, in one process; with workers: `test_pretrained`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.pretrained import StartSettings, TableStart
from dist_embed.vectors.file import HeldStretch
from tests.unit.small_run import ONE


class File:
    """Stretches in any order, as workers' rounds bring them."""

    uri, width, num_stated = "v.txt", 2, None

    def __init__(self, *stretches: tuple[int, list[str]]) -> None:
        self.held = [
            HeldStretch(self.uri, origin, words, np.array([[origin + i, 1.0] for i in range(9)]))
            for origin, words in stretches
        ]

    def stretches(self, part: int, num_parts: int) -> Any:
        return iter(self.held)


def numbers_of_entries(tokenizer: Tokenizer, *stretches: tuple[int, list[str]]) -> list[float]:
    """For each word of the vocabulary the number of the entry that its row has taken."""
    spec = TableSpec("source", tokenizer.size, 2)
    weight = torch.zeros(tokenizer.size, 2)
    settings = StartSettings(forms=("lowercase", "digits"), missing="mean")
    start = TableStart(
        weight, spec, shard_of(spec.num_rows, 0, 1), ONE, tokenizer, settings, seed=1,
        fresh_scale=1.0,
    )  # fmt: skip
    coverage = start.fill(File(*stretches), None)  # type: ignore[arg-type]
    words = torch.arange(4, tokenizer.size)
    assert coverage.entries == sum(len(words) for _, words in stretches)
    return weight[spec.order.rows_of(words), 0].tolist()


WORDS = ["The", "A1", "x"]


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        # The first of the same words, in whatever order they come.
        ([(0, ["The", "x", "The"]), (10, ["A1", "A1"])], [0, 10, 1]),
        ([(10, ["The", "A1"]), (0, ["A1", "x", "x"])], [10, 0, 1]),
        ([(10, ["The"]), (20, ["The", "x"]), (0, ["A1", "The"])], [1, 0, 21]),
        # What is written the same comes before what is so in lower case, wherever that stands.
        ([(0, ["the", "a1", "x"]), (10, ["The", "a0", "A1"])], [10, 12, 2]),
        ([(10, ["The", "A1"]), (0, ["the", "a1", "x"])], [10, 11, 2]),
        # And that before what is so with other digits.
        ([(0, ["a0", "x"]), (10, ["a1", "the"])], [11, 10, 1]),
        ([(10, ["a1", "the"]), (0, ["a0", "x"])], [11, 10, 1]),
    ],
)
def test_a_row_takes_the_best_entry_and_of_equal_ones_the_first(
    stretches: list[tuple[int, list[str]]], expected: list[float]
) -> None:
    tokenizer = Tokenizer.from_words(
        [SPACE + word for word in WORDS], lowercase=False, split_punctuation=False
    )
    assert numbers_of_entries(tokenizer, *stretches) == expected

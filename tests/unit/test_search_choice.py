"""Which search a run gets, and what its user is told."""

from __future__ import annotations

from typing import Any

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.training.search_choice import FREQUENT_WORDS, search_choice


@pytest.mark.parametrize(
    ("search", "kept", "num_words", "expected", "told"),
    [
        ({}, 10, 1_000_001, (FREQUENT_WORDS, 10),
         "among the 30,000 most frequent words and up to 10 translations of each source word "
         "(search.candidates=auto: 1,000,001 words, and a lexicon)"),
        ({}, 4, 2_000_000, (FREQUENT_WORDS, 4), "up to 4 translations"),
        ({"candidate_translations": 3}, 4, 2_000_000, (FREQUENT_WORDS, 3), "up to 3 translations"),
        ({}, 10, 1_000_000, (0, 0),
         "among all 1,000,000 words, exactly (search.candidates=auto takes candidate lists above "
         "1,000,000)"),
        ({}, 0, 1_000_001, (0, 0), "where there is a lexicon: data.lexicon_translations=10)"),
        ({"candidates": 0}, 10, 9_000_000, (0, 0),
         "among all 9,000,000 words, exactly (search.candidates=0)"),
        ({"candidates": 8}, 10, 9, (8, 10), "among the 8 most frequent words"),
        ({"candidates": 9}, 10, 9, (0, 0), "among all 9 words, exactly (search.candidates=9)"),
    ],
)  # fmt: skip
def test_the_search_and_why(
    search: dict[str, Any], kept: int, num_words: int, expected: tuple[int, int], told: str
) -> None:
    config = config_from_dict(
        {"run": {"uri": "r"}, "train": {"max_steps": 1}, "search": search,
         "data": {"synthetic": {}, "lexicon_translations": kept},
         "tokenizer": {"vocab_size": num_words}}
    )  # fmt: skip
    *choice, line = search_choice(config, num_words)
    assert tuple(choice) == expected
    assert line.startswith("search: among ")
    assert told in line

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.data.words import find_word, shown_word
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group
from dist_embed.training import watched
from dist_embed.training.watched import WatchedWords
from tests.unit.small_run import word_tokenizer


class Tables:
    """Of which only the group is looked at."""

    group = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


def watch(*words: str) -> WatchedWords:
    given: Any = word_tokenizer(["one", "two"]), None, "none", Tables()
    return WatchedWords(words, *given)


def test_words_are_found_as_users_write_them() -> None:
    tokenizer = word_tokenizer(["one", "two"], lowercase=True)
    assert shown_word(tokenizer, find_word(tokenizer, "One") or 0) == "one"
    assert [find_word(tokenizer, word) for word in ("three", " ", "\ud800")] == [None] * 3


@pytest.mark.parametrize("word", ["three", "<unk>", ""])
def test_a_word_that_cannot_be_watched_is_named(word: str) -> None:
    with pytest.raises(UserError, match=f"train.neighbors_of: '{word}' is not allowed"):
        watch("one", word)


def test_a_word_that_is_never_trained_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer(["one", "two"])
    counts = np.ones(tokenizer.size, dtype=np.int64)
    monkeypatch.setattr(watched, "read_occurrences", lambda *_: counts)
    watch("one", "two")
    counts[find_word(tokenizer, "two")] = 0
    with pytest.raises(UserError, match="'two' is not allowed: no training pair has it"):
        watch("one", "two")

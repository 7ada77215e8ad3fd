from __future__ import annotations

import pytest

from dist_embed.data.words import find_word, shown_word
from dist_embed.errors import UserError
from dist_embed.training.watched import WatchedWords
from tests.unit.small_run import word_tokenizer


def test_words_are_found_as_users_write_them() -> None:
    tokenizer = word_tokenizer(["one", "two"], lowercase=True)
    assert shown_word(tokenizer, find_word(tokenizer, "One") or 0) == "one"
    assert [find_word(tokenizer, word) for word in ("three", " ", "\ud800")] == [None] * 3


@pytest.mark.parametrize("word", ["three", "<unk>", ""])
def test_a_word_that_cannot_be_watched_is_named(word: str) -> None:
    tokenizer = word_tokenizer(["one", "two"])
    with pytest.raises(UserError, match=f"train.neighbors_of: '{word}' is not allowed"):
        WatchedWords(["one", word], tokenizer, None, "none", None)  # type: ignore[arg-type]

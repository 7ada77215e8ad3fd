from __future__ import annotations

import pytest

from dist_embed.training.word_recall import Recall, recall_by_count

COUNTS = {"a": 1, "b": 2, "c": 3, "d": 20, "e": 21, "f": 100, "g": 101, "h": 1000, "i": 1001}


def test_words_fall_into_bins_by_their_count() -> None:
    found = recall_by_count(["a c x"], ["a b c d e f g h i x y"], COUNTS)
    assert found == [
        Recall(0, 0, 2, 1), Recall(1, 2, 2, 1), Recall(3, 5, 1, 1), Recall(6, 20, 1, 0),
        Recall(21, 100, 2, 0), Recall(101, 1000, 2, 0), Recall(1001, None, 1, 0),
    ]  # fmt: skip
    assert found[0].share == 0.5


def test_a_word_is_found_as_often_as_its_own_sentence_has_it() -> None:
    found = recall_by_count(["c c c", "", "x c"], ["c c", "c", "c c c"], COUNTS)[2]
    assert (found.words, found.found) == (6, 3)


def test_order_and_other_words_do_not_matter() -> None:
    assert recall_by_count(["y  c\ta z"], ["a c"], COUNTS)[1:3] == [
        Recall(1, 2, 1, 1), Recall(3, 5, 1, 1)
    ]  # fmt: skip


def test_a_bin_without_words_has_no_share() -> None:
    assert {one.share for one in recall_by_count([""], [""], {})} == {None}


def test_a_translation_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        recall_by_count(["a"], ["a", "b"], COUNTS)

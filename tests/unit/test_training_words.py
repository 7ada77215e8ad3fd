from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dist_embed.data.settings import Kind
from dist_embed.data.text.rows import Pair
from dist_embed.data.training_words import count_target_words, unknown_share
from tests.unit.small_corpus import Prepared, prepare, write_text

PAIRS: list[Pair] = [("x", "Alt, neu."), ("x y", "alt neu alt"), ("Alt", "so weit")]


def test_counts_are_those_of_the_text(prepared: Prepared) -> None:
    text = Counter(word for _, target in prepared.pairs["train"] for word in target.split())
    assert count_target_words(prepared.uri, lowercase=False, form="none") == text
    assert unknown_share(prepared.uri) == 0


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("shared", [False, True])
def test_pieces_and_marks_are_put_together(tmp_path: Path, kind: Kind, shared: bool) -> None:
    corpora = {"train": write_text(tmp_path, "train", PAIRS)}
    prepare(tmp_path / "data", corpora, kind, shared=shared, shard_sentences=2)
    counts = {"Alt,": 1, "neu.": 1, "alt": 2, "neu": 1, "so": 1, "weit": 1}
    assert count_target_words(str(tmp_path / "data"), lowercase=False, form="none") == counts


def test_cases_are_counted_together_where_asked(tmp_path: Path) -> None:
    pairs = [("x", "Alt alt"), ("x", "ALT Neu")]
    prepare(tmp_path / "data", {"train": write_text(tmp_path, "train", pairs)})
    assert count_target_words(str(tmp_path / "data"), lowercase=True, form="none") == {
        "alt": 3,
        "neu": 1,
    }


def test_letters_are_counted_in_one_form_where_asked(tmp_path: Path) -> None:
    pairs = [("x", "\u00e9t\u00e9 neu"), ("x", "e\u0301te\u0301 neu")]
    prepare(tmp_path / "data", {"train": write_text(tmp_path, "train", pairs)})
    found = count_target_words(str(tmp_path / "data"), lowercase=False, form="nfc")
    assert found == {"\u00e9t\u00e9": 2, "neu": 2}


def test_what_the_vocabulary_lacks_is_not_counted(tmp_path: Path) -> None:
    pairs = [("x", "a a a b c"), ("x", "a b b d e")]
    corpora = {"train": write_text(tmp_path, "train", pairs)}
    prepare(tmp_path / "data", corpora, shared=False, vocab_size=6)
    assert count_target_words(str(tmp_path / "data"), lowercase=False, form="none") == {
        "a": 4,
        "b": 3,
    }
    assert unknown_share(str(tmp_path / "data")) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_word_that_looks_like_an_unknown_one_is_counted(tmp_path: Path, kind: Kind) -> None:
    corpora = {"train": write_text(tmp_path, "train", [("x", "a<unk>b so a<unk>b")])}
    prepare(tmp_path / "data", corpora, kind)
    counts = count_target_words(str(tmp_path / "data"), lowercase=False, form="none")
    assert counts == {"a<unk>b": 2, "so": 1}

"""Which words of a file are which tokens, and how much of a vocabulary was found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import pytest

from dist_embed.data.settings import Form
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.vectors import match
from dist_embed.vectors.coverage import COMPOSED, NOT_FOUND, Coverage, coverage_of
from dist_embed.vectors.match import FORMS, VocabularyKeys, word_of
from dist_embed.vectors.word_list import WordList

# Id 4 and on; the last two are marks without a space before them.
WORDS = ["The", "the", "X1", "Cafe\u0301", "rare", "A"]
TOKENS = [*(SPACE + word for word in WORDS), "A", "."]


def tokenizer() -> Tokenizer:
    return Tokenizer.from_words(TOKENS, lowercase=False, split_punctuation=True)


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("collide", [False, True])
def test_words_are_matched_by_the_first_likeness(
    monkeypatch: pytest.MonkeyPatch, block: int, collide: bool
) -> None:
    monkeypatch.setattr(match, "_BLOCK", block)
    if collide:  # two spellings may have one hash: here all have
        monkeypatch.setattr(match, "_hashes", lambda words: np.zeros(len(words), np.int64))
    keys = VocabularyKeys(tokenizer(), ("lowercase", "nfc", "digits"))
    asked = ["none", "the", "x0", "A", SPACE + "A", "caf\u00e9", "X1", "cafe\u0301", ".", "<unk>"]
    found = keys.match(asked)
    pairs = sorted(
        (asked[place], i, rank, counted)
        for place, i, rank, counted in zip(
            found.places.tolist(), found.ids.tolist(), found.ranks.tolist(),
            found.counted.tolist(), strict=True,
        )
    )  # fmt: skip
    # Rank 0: as the token; 1: as its word; then after lower case, composed, digits.
    expected = [
        ("<unk>", 1, 0, True),
        (".", 11, 0, True),
        ("A", 9, 1, True),
        ("A", 10, 0, False),
        ("X1", 6, 1, True),
        ("caf\u00e9", 7, 3, True),
        ("cafe\u0301", 7, 2, True),
        ("the", 4, 2, True),
        ("the", 5, 1, False),
        ("x0", 6, 4, True),
        (SPACE + "A", 9, 0, True),
    ]
    assert pairs == sorted(expected)


def test_words_of_a_file_have_the_vocabularys_form() -> None:
    words = [SPACE + "café", SPACE + "λόγος"]
    asked = ["cafe\u0301", "café", "CAFE\u0301", "\ufeffλόγος", "ΛΌΓΟΣ"]
    for form, found in (("none", [1]), ("nfc", [0, 1, 3])):
        vocabulary = Tokenizer.from_words(
            words, lowercase=True, split_punctuation=False, form=cast("Form", form)
        )
        assert VocabularyKeys(vocabulary, ()).match(asked).places.tolist() == found
    assert FORMS["lowercase"]("ΛΌΓΟΣ") == "λόγος"


def test_spellings_by_rank() -> None:
    keys = VocabularyKeys(tokenizer(), ("lowercase", "digits"))
    assert keys.spellings(SPACE + "X1") == [SPACE + "X1", "X1", "x1", "x0"]
    assert keys.spellings(SPACE + "the") == [SPACE + "the", "the", None, None]
    assert keys.spellings("A") == ["A", None, "a", None]
    assert keys.spellings("<pad>") == ["<pad>", None, None, None]
    assert VocabularyKeys(tokenizer(), ()).spellings("A") == ["A", None]
    assert FORMS["digits"]("a1b22") == "a0b00"
    assert [FORMS["hashes"](word) for word in ("a1b22", "1", "1990s")] == ["a#b##", "1", "####s"]


def test_what_word_a_token_stands_for() -> None:
    for token, whole, word in [
        (SPACE + "a", True, "a"), (SPACE + "a", False, "a"), ("a", True, "a"), ("a", False, None),
        (SPACE, True, None), ("<unk>", True, None), ("</s>", False, None),
    ]:  # fmt: skip
        assert word_of(token, whole_words=whole) == word


def test_coverage_counts_words_and_how_often_they_occur() -> None:
    names = [f"w{n}" for n in range(40)]
    vocabulary = Tokenizer.from_words(
        [SPACE + name for name in names], lowercase=False, split_punctuation=False
    )
    ranks = np.full(44, NOT_FOUND)
    ranks[[0, 1]] = 0  # special tokens are no words
    ranks[20:23] = 1, 2, COMPOSED
    ranks[[4, 5]], ranks[6], ranks[7], ranks[8], ranks[[9, 10]] = 1, 0, 2, 3, COMPOSED
    counts = np.zeros(44, dtype=np.int64)
    counts[:4], counts[4:] = 10**6, np.arange(40) + 1
    counts[20:24] = 0  # words of the other side, in the file or not, count nowhere
    how: Any = {"table": "t", "uri": "u", "duplicates": 2, "unreadable": 0, "policy": "mean"}
    found = coverage_of(vocabulary, counts, ranks, ("lowercase", "digits"), entries=99, **how)
    assert found.words == 36
    assert found.tokens == sum(range(1, 41)) - 17 - 18 - 19 - 20
    assert found.found_words == {"as written": 3, "after lowercase": 1, "after digits": 1}
    assert found.found_tokens == 1 + 2 + 3 + 4 + 5
    assert (found.composed_words, found.composed_tokens) == (2, 6 + 7)
    # The most frequent of 30, the first of equal ones first.
    assert found.missing == [(f"w{n}", n + 1) for n in range(39, 19, -1)]
    assert found.token_share == 15 / 746
    assert found.lines()[0] == (
        "table t: 5 of 36 words (13.9 %) and 2.0 % of their running words start from u "
        "(99 vectors; 3 as written, 1 after lowercase, 1 after digits; 2 duplicates passed over)"
    )
    assert found.lines()[1] == (
        "table t: 2 more words (1.7 % of the running words) from their parts"
    )
    assert found.lines()[2].startswith("table t: without a vector (mean): w39 (40), w38 (39),")
    assert json.loads(found.to_json())["found_tokens"] == 15
    none = coverage_of(
        vocabulary, None, ranks, (), entries=1, **(how | {"unreadable": 3, "duplicates": 0})
    )
    assert none.token_share == 0
    assert "3 words are empty or not UTF-8" in none.lines()[0]
    assert "duplicates" not in none.lines()[0]
    assert none.missing[:2] == [("w7", 0), ("w8", 0)]


def test_what_was_found_is_told_in_full() -> None:
    how: Any = {"table": "t", "uri": "u", "policy": "random", "found_tokens": 2000}
    found = Coverage(
        **how, entries=12_345, duplicates=1_001, unreadable=2_002, words=4_000, tokens=8_000,
        found_words={"as written": 1_000, "after nfc": 0, "after digits": 1_500},
        composed_words=1_100, composed_tokens=400, missing=[("東京", 1_234), ("\x1b", 0)],
    )  # fmt: skip
    assert found.lines() == [
        "table t: 2,500 of 4,000 words (62.5 %) and 25.0 % of their running words start from u "
        "(12,345 vectors; 1,000 as written, 1,500 after digits; 1,001 duplicates passed over; "
        "2,002 words are empty or not UTF-8)",
        "table t: 1,100 more words (5.0 % of the running words) from their parts",
        "table t: without a vector (random): 東京 (1,234), \\x1b (0)",
    ]
    for stated, told in ((12_345, 3), (12_346, 4)):
        lines = replace(found, stated=stated).lines()
        assert len(lines) == told
    assert lines[1] == (
        "table t: u holds 12,345 vectors, which are taken; its header promises 12,346"
    )
    for widths, way in (((50, 1_024), ", widened from 50 to 1,024"), ((1_024, 50),
                        ", projected from 1,024 to 50"), ((50, 50), "")):  # fmt: skip
        (first, *_) = replace(found, file_width=widths[0], width=widths[1]).lines()
        assert f"(12,345 vectors{way}; 1,000 as written" in first
    nothing = Coverage(
        **(how | {"found_tokens": 0}), entries=1, duplicates=0, unreadable=0, words=0, tokens=0,
        found_words={"as written": 0}, composed_words=0, composed_tokens=0,
    )  # fmt: skip
    assert nothing.lines() == [
        "table t: 0 of 0 words (0.0 %) and 0.0 % of their running words start from u "
        "(1 vectors; none)"
    ]
    assert json.loads(found.to_json()) == asdict(found) | {
        "missing": [["東京", 1_234], ["\x1b", 0]]
    }
    assert "東京" in found.to_json()  # people read it too
    assert found.to_json().endswith("}\n")


def test_words_that_lack_a_vector_are_shown_as_the_vocabulary_has_them() -> None:
    pieces = Tokenizer.train(iter(["abab ab"] * 9), "bpe", vocab_size=9, min_count=1,
                             lowercase=False)  # fmt: skip
    ranks = np.full(pieces.size, NOT_FOUND)
    counts = np.ones(pieces.size, np.int64)
    how: Any = {"table": "t", "uri": "u", "entries": 1, "duplicates": 0, "unreadable": 0}
    found = coverage_of(pieces, counts, ranks, (), **how, policy="mean", pieces=True)
    expected = [token if token == SPACE else token.removeprefix(SPACE) for token in
                pieces.tokens()[4:]]  # fmt: skip
    assert [word for word, _ in found.missing] == expected
    # In a file of words there can be no pieces inside words: what begins one counts alone.
    found = coverage_of(pieces, counts, ranks, (), **how, policy="mean")
    begin = [token[1:] for token in pieces.tokens()[4:] if token[0] == SPACE and token != SPACE]
    assert [word for word, _ in found.missing] == begin
    assert (found.words, found.tokens) == (len(begin), len(begin))
    assert 0 < len(begin) < len(expected)


def test_a_file_with_every_word_covers_all() -> None:
    """Also where marks leave the space before them, and blanks, as tokens of their own."""
    text = "the mice , the \u00a0 hats ."
    split = Tokenizer.from_words([], lowercase=False, split_punctuation=True).split(text)
    vocabulary = Tokenizer.from_words(sorted({*split}), lowercase=False, split_punctuation=True)
    assert SPACE in split
    assert SPACE + "\u00a0" in split
    counts = np.bincount(vocabulary.encode([text])[0], minlength=vocabulary.size)
    words = [".", ",", *(token[1:] for token in split if token[1:].isalpha())]
    ranks = np.full(vocabulary.size, NOT_FOUND)
    keys = VocabularyKeys(vocabulary, ())
    found = keys.match(words)
    ranks[found.ids] = found.ranks
    told = coverage_of(
        vocabulary, counts, ranks, (), table="t", uri="u", entries=5, duplicates=0, unreadable=0,
        policy="mean",
    )  # fmt: skip
    assert (told.token_share, told.words, told.tokens, told.missing) == (1, 5, 6, [])


def test_a_list_of_words_gives_each_back() -> None:
    words = WordList()
    for word in ("", "東京", "a", "naïve"):
        words.append(word)
    assert len(words) == 4
    assert [words[place] for place in range(4)] == ["", "東京", "a", "naïve"]
    assert words.part(1, 3) == ["東京", "a"]
    assert words.part(2, 99) == ["a", "naïve"]

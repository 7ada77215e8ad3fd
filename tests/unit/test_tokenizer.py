from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.trainers import WordLevelTrainer

from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.settings import Kind
from dist_embed.data.tokenizer import END, PAD, SPECIAL_TOKENS, START, UNKNOWN, Tokenizer
from dist_embed.errors import UserError
from tests.unit.small_corpus import train_tokenizer

TEXTS = [
    "The cat sat on the mat .", "Isn't it (really) fine?  Yes , it is!", "two  spaces   and three",
    "trailing space ", "größer — schöner; naïve…", "1,234.56 € or $7.00/kg & more", 'a "b" c \'d\'',
    "tab\there", "日本 語 text", "<s> and </s> are marks; <pad> <unk> too", "a a a a b b cat cat",
] * 3  # fmt: skip
CHARACTERS = sorted({character for text in TEXTS for character in text})
CHUNKS = sorted({chunk for text in TEXTS for chunk in text.split(" ")} - {"", *SPECIAL_TOKENS})
VARIANTS: list[tuple[Kind, bool]] = [
    ("word", True),
    ("word", False),
    ("bpe", True),
    ("unigram", True),
]


def train(kind: Kind, texts: list[str] = TEXTS, **changes: Any) -> Tokenizer:
    return train_tokenizer(kind, texts, **changes)


@cache
def trained(kind: Kind, split_punctuation: bool) -> Tokenizer:
    return train(kind, split_punctuation=split_punctuation)


def ordered(tokenizer: Tokenizer, texts: list[str] = TEXTS) -> tuple[Tokenizer, list[int]]:
    counts = Counter(i for ids in tokenizer.encode(texts) for i in ids)
    return tokenizer.ordered_by([counts[i] for i in range(tokenizer.size)]), [
        counts[i] for i in range(tokenizer.size)
    ]


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode([text]))[0]


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(CHUNKS), st.integers(1, 3))).map(
        lambda parts: "".join(chunk + " " * spaces for chunk, spaces in parts)
    ),
    st.booleans(),
)
def test_text_of_seen_words_comes_back(kind: Kind, split: bool, text: str, strip: bool) -> None:
    text = text.rstrip() if strip else text
    assert round_trip(trained(kind, split), text) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@settings(max_examples=60, deadline=None)
@given(
    st.text(CHARACTERS).filter(
        lambda text: text[:1] != " " and not any(mark in text for mark in SPECIAL_TOKENS)
    )
)
def test_text_of_seen_characters_comes_back(kind: Kind, text: str) -> None:
    assert round_trip(trained(kind, True), text) == text


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
def test_leading_spaces_come_back(kind: Kind, split: bool) -> None:
    for text in (" cat", "  cat", " ", "   cat  the "):
        assert round_trip(trained(kind, split), text) == text


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
def test_text_that_looks_like_a_special_token_is_text(kind: Kind, split: bool) -> None:
    text = "<s> and </s> are marks; <pad> <unk> too"
    ids = trained(kind, split).encode([text])[0]
    assert not {PAD, UNKNOWN, START, END} & set(ids)
    assert round_trip(trained(kind, split), text) == text


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
def test_special_tokens_come_first(kind: Kind, split: bool) -> None:
    assert [PAD, UNKNOWN, START, END] == [0, 1, 2, 3]
    for tokenizer in (trained(kind, split), ordered(trained(kind, split))[0]):
        assert tokenizer.tokens()[:4] == SPECIAL_TOKENS
        assert len(tokenizer.tokens()) == tokenizer.size == len(set(tokenizer.tokens()))


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
def test_ids_are_ordered_by_frequency(kind: Kind, split: bool) -> None:
    tokenizer, _ = ordered(trained(kind, split))
    counts = Counter(i for ids in tokenizer.encode(TEXTS) for i in ids)
    found = [counts[i] for i in range(len(SPECIAL_TOKENS), tokenizer.size)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_another_order_changes_ids_but_not_pieces(
    kind: Kind, split: bool, rng: random.Random
) -> None:
    old = trained(kind, split)
    counts = [rng.randrange(50) for _ in range(old.size)]
    new = old.ordered_by(counts)
    old_tokens, new_tokens = old.tokens(), new.tokens()
    assert sorted(new_tokens) == sorted(old_tokens)
    by_token = dict(zip(old_tokens, counts, strict=True))
    order = [by_token[token] for token in new_tokens[4:]]
    assert order == sorted(order, reverse=True)
    for before, after in zip(old.encode(TEXTS), new.encode(TEXTS), strict=True):
        assert [old_tokens[i] for i in before] == [new_tokens[i] for i in after]
    assert new.decode(new.encode(TEXTS[:3])) == TEXTS[:3]


@pytest.mark.parametrize(("kind", "split"), VARIANTS)
def test_what_is_stored_is_read(kind: Kind, split: bool) -> None:
    old, _ = ordered(trained(kind, split))
    new = Tokenizer.from_json(old.to_json())
    assert new.tokens() == old.tokens()
    assert new.encode(TEXTS) == old.encode(TEXTS)
    assert new.decode(old.encode(TEXTS)) == old.decode(old.encode(TEXTS))
    assert new.to_json() == old.to_json()


@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
def test_lowercase_is_applied_to_all_text(kind: Kind) -> None:
    tokenizer = train(kind, lowercase=True)
    assert not any(token != token.lower() for token in tokenizer.tokens())
    assert round_trip(tokenizer, "THE CAT sat") == "the cat sat"
    assert round_trip(train(kind), "The cat sat") == "The cat sat"


def test_words_are_one_id_each() -> None:
    tokenizer = train("word", ["ein haus , ein baum", "ein haus"], split_punctuation=False)
    assert sorted(tokenizer.tokens()[4:]) == ["▁,", "▁baum", "▁ein", "▁haus"]
    assert tokenizer.encode(["ein baum ein"])[0] == [
        tokenizer.tokens().index(word) for word in ("▁ein", "▁baum", "▁ein")
    ]


def test_split_punctuation_decides_whether_marks_are_words() -> None:
    texts = ["yes, no!"]
    assert sorted(train("word", texts).tokens()[4:]) == ["!", ",", "▁no", "▁yes"]
    glued = train("word", texts, split_punctuation=False)
    assert sorted(glued.tokens()[4:]) == ["▁no!", "▁yes,"]


@pytest.mark.parametrize("split", [True, False])
def test_an_unknown_word_is_one_unknown_id(split: bool) -> None:
    tokenizer = trained("word", split)
    ids = tokenizer.encode(["The unheard-of cat" if not split else "The unheardof cat"])[0]
    assert [i == UNKNOWN for i in ids] == [False, True, False]
    assert tokenizer.decode([ids, ids[1:], ids[:2]]) == ["The <unk> cat", "<unk> cat", "The <unk>"]
    assert tokenizer.decode([ids, ids[1:]], unknown="?") == ["The ? cat", "? cat"]
    assert tokenizer.decode([[START, *ids, ids[1], END, PAD]]) == ["The <unk> cat <unk>"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_an_unknown_character_spoils_only_its_place(kind: Kind) -> None:
    tokenizer = trained(kind, True)
    (ids,) = tokenizer.encode(["cat Ж cat"])
    assert ids.count(UNKNOWN) == 1
    (text,) = tokenizer.decode([ids])
    assert text.startswith("cat")
    assert text.endswith("cat")
    assert tokenizer.decode([ids], unknown="?") == ["cat ? cat"]


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_tokenizer_of_words_is_the_one_that_the_library_trains(
    split: bool, lowercase: bool
) -> None:
    inner = Tokenizer.from_words([], lowercase=lowercase, split_punctuation=split)._inner
    inner.train_from_iterator(
        TEXTS, WordLevelTrainer(vocab_size=20, special_tokens=SPECIAL_TOKENS, show_progress=False)
    )
    by_library, counts = ordered(Tokenizer(inner))
    built = train("word", vocab_size=20, split_punctuation=split, lowercase=lowercase)
    assert built.to_json() == by_library.to_json()
    assert built.encode(TEXTS) == by_library.encode(TEXTS)
    assert counts[UNKNOWN] > 0


def test_rare_words_are_left_out_and_size_is_bounded() -> None:
    texts = ["a a a b b c"]
    assert train("word", texts, min_count=2).tokens()[4:] == ["▁a", "▁b"]
    assert train("word", texts, vocab_size=6).tokens()[4:] == ["▁a", "▁b"]
    assert train("bpe", vocab_size=120).size <= 120
    assert train("unigram", vocab_size=120).size <= 120


def test_the_size_is_bounded_where_a_text_has_more_characters() -> None:
    texts = ["".join(chr(0x4E00 + n) for n in range(100)) + "丁丁丁"] * 2
    tokenizer = train("bpe", texts, vocab_size=24)
    assert tokenizer.size == 24
    assert "丁" in tokenizer.tokens()  # the most frequent one
    assert UNKNOWN in tokenizer.encode(texts[:1])[0]
    with pytest.raises(UserError, match=r"vocab_size: 24 is not allowed .* characters alone"):
        train("unigram", texts, vocab_size=24)


def test_decoding_drops_padding_and_marks() -> None:
    tokenizer = trained("bpe", True)
    (ids,) = tokenizer.encode(["the cat"])
    assert tokenizer.decode([[START, *ids, END, PAD, PAD]]) == ["the cat"]
    assert tokenizer.decode([[], [PAD]]) == ["", ""]


@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
def test_empty_text_has_no_ids(kind: Kind) -> None:
    assert trained(kind, True).encode(["", "cat", ""])[::2] == [[], []]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_training_again_gives_the_same_bytes(kind: Kind) -> None:
    texts = [s for s, _ in SyntheticLanguage(40, 20, 15, seed=1).pairs(300, "train", 1)]
    stored = {ordered(train(kind, texts), texts)[0].to_json() for _ in range(3)}
    assert len(stored) == 1


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_words_are_split_as_they_are_encoded(split: bool, lowercase: bool) -> None:
    texts = [
        "Hello, world!  It's  Bob's",
        " odd\u3000spaces\u00a0here ",
        "<unk> and <s>.",
        "",
        "▁ a",
    ]
    tokenizer = train_tokenizer("word", texts, lowercase=lowercase, split_punctuation=split)
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        pieces = tokenizer.split(text)
        assert pieces == [tokenizer.token(i) for i in ids]
        assert tokenizer.join(pieces) == tokenizer.decode([ids])[0]


def test_unknown_words_are_hashed_each_to_its_own_place() -> None:
    tokenizer = train_tokenizer("word", ["a b, c"])
    texts = ["a x, b y", "a b", "y x", "<unk>"]
    plain, hashed = tokenizer.encode(texts), tokenizer.encode_hashed(texts, 10**6)
    for before, after in zip(plain, hashed, strict=True):
        assert [i if i < tokenizer.size else UNKNOWN for i in after] == before
    x, y = hashed[0][1], hashed[0][4]
    assert hashed[2][1] == x
    assert x != y
    # "y" is the first word of the third text; every word of a sentence has its mark.
    assert hashed[2][0] == y
    assert tokenizer.encode_hashed(texts, 10**6) == hashed
    # The hash is fixed for ever: it decides which row a word has trained.
    assert tokenizer.encode_hashed(["zebra"], 1000) == [[tokenizer.size + 164]]
    few = tokenizer.encode_hashed([" ".join(f"w{i}" for i in range(500))], 4)[0]
    assert set(few) == {tokenizer.size + i for i in range(4)}


def test_a_digest_tells_the_tokens_and_their_order() -> None:
    """Checkpoints hold it: one of today must be that of a run of years ago."""
    tokenizer = Tokenizer.from_words(["▁a", "▁é"], lowercase=False, split_punctuation=True)
    assert tokenizer.digest == "dea9484542251292dfc6a36e472429538b2c79e7f5228c8c9ac41d410ae09bbe"
    others = [(["▁é", "▁a"], True), (["▁a"], True)]
    digests = {
        Tokenizer.from_words(words, lowercase=False, split_punctuation=split).digest
        for words, split in [(["▁a", "▁é"], False), *others]
    }
    assert len(digests) == 3
    assert tokenizer.digest in digests


def test_ids_are_looked_up_by_token() -> None:
    tokenizer = Tokenizer.from_words(["▁a", "▁b"], lowercase=False, split_punctuation=True)
    assert tokenizer.ids_of(["▁b", "b", "▁a", "<s>"]) == [5, UNKNOWN, 4, START]
    assert [tokenizer.id_of(token) for token in ("▁a", "a", "</s>")] == [4, None, END]
    assert [tokenizer.token(i) for i in (4, UNKNOWN)] == ["▁a", "<unk>"]
    assert tokenizer.knows_words
    assert not trained("bpe", True).knows_words

from __future__ import annotations

from functools import cache

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dist_embed.data.settings import Form, Kind
from dist_embed.data.stretches import encode_column
from dist_embed.data.tokenizer import UNKNOWN, Tokenizer
from tests.unit.small_corpus import ODD, odd_texts, train_tokenizer

VARIANTS: list[tuple[Kind, bool, bool, Form]] = [
    ("word", True, False, "none"), ("word", False, False, "none"), ("word", True, True, "none"),
    ("word", False, True, "none"), ("word", True, False, "nfc"), ("word", False, True, "nfkc"),
    ("bpe", False, False, "none"), ("bpe", False, True, "nfc"), ("unigram", False, False, "nfkc"),
]  # fmt: skip
# Half of the odd characters are known.
TEXTS = [
    "a b aa bb A ab  , . ▁ ab, <unk> b. abab",
    "".join(ODD[::2]),
    "ba <s> <s>  i̇ σ ß ç 가 c\u0327",
] * 3


@cache
def trained(kind: Kind, split_punctuation: bool, lowercase: bool, form: Form) -> Tokenizer:
    return train_tokenizer(
        kind, TEXTS, split_punctuation=split_punctuation, lowercase=lowercase, form=form,
        vocab_size=300,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "split", "lower", "form"), VARIANTS)
@settings(max_examples=80, deadline=None)
@given(st.one_of(odd_texts, st.lists(st.text(max_size=20), max_size=5)))
@example(["c\u0327 \u1100\u1161\u00a0c", "c \u0327"])  # letters that join only some others
def test_a_column_is_encoded_as_single_texts_are(
    kind: Kind, split: bool, lower: bool, form: Form, texts: list[str]
) -> None:
    tokenizer = trained(kind, split, lower, form)
    found = encode_column(tokenizer, texts)
    assert found.type == pa.list_(pa.int32())
    assert found.to_pylist() == [tokenizer.encode([text])[0] for text in texts]
    if kind == "word":
        hashed = [tokenizer.encode_hashed([text], 1000)[0] for text in texts]
        assert encode_column(tokenizer, texts, 1000).to_pylist() == hashed


@pytest.mark.parametrize(("kind", "split", "lower", "form"), VARIANTS)
def test_the_texts_have_known_and_unknown_tokens(
    kind: Kind, split: bool, lower: bool, form: Form
) -> None:
    ids = trained(kind, split, lower, form).encode([*TEXTS, "Ж".join(ODD)])
    tokens = {token for sentence in ids for token in sentence}
    assert UNKNOWN in tokens
    assert len(tokens) > 10

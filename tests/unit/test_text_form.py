"""Texts that differ only in blanks or in canonical form are the same text."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.data.settings import Form, Kind
from dist_embed.data.text_form import BLANK, in_form, lowercased, may_join
from dist_embed.data.tokenizer import Tokenizer
from tests.unit.small_corpus import ODD, train_tokenizer

# What this Python knows; the library may know more.
KNOWN = [c for i in range(0x110000) if unicodedata.category(c := chr(i)) not in ("Cn", "Cs")]
GREEK = [*"ΑΌΣσςόα'’.·- ʰ", "\u0301", "\u00ad", "A", "1", "\u2009"]
odd = st.one_of(st.lists(st.sampled_from(ODD), max_size=12).map("".join), st.text(max_size=20))


def test_blanks_are_what_python_calls_blank() -> None:
    blank = re.compile(re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), BLANK))
    assert [c for c in KNOWN if bool(blank.fullmatch(c)) != c.isspace()] == []
    others = [c for c in KNOWN if c.isspace() and c != " "]
    assert set(in_form([f"x{c}x" for c in others], "nfc")) == {"x x"}
    assert in_form(["\ufeff a \u202f b\ufeffc\t", "\u00a0", "\ufeff", ""], "nfc") == [
        "a bc", "", "", ""
    ]  # fmt: skip


def test_letters_have_unicodes_forms() -> None:
    kept = "x".join(c for c in KNOWN if not c.isspace() and c != "\ufeff")
    assert in_form([kept], "nfc") == [unicodedata.normalize("NFC", kept)]
    # Composed letters of Unicode 13 and later are none to the library.
    whole = [c for c in kept if (d := unicodedata.normalize("NFD", c)) != c and len(d) < 3]
    parts = "x".join(unicodedata.normalize("NFD", c) for c in whole if c != "\U00011938")
    assert in_form([parts], "nfc") == [unicodedata.normalize("NFC", parts)]
    assert in_form(["ﬁ x² ①\u00a8a"], "nfkc") == ["fi x2 1 \u0308a"]
    assert in_form(["ﬁ x²"], "nfc") == ["ﬁ x²"]
    # No capital is composed of these two.
    assert in_form(["H\u0331", "h\u0331", "ẖ"], "nfc", lowercase=True) == ["ẖ"] * 3


def test_zero_width_characters_and_soft_hyphens_are_kept() -> None:
    """They are letters' joiners in Persian and Hindi, and words' separators in Khmer."""
    text = "a\u200bb\u200cc\u200dd\u2060e\u00adf"
    assert in_form([text], "nfc") == in_form([text], "nfkc") == [text]


def test_nothing_is_done_to_text_without_a_form() -> None:
    text = " \ufeffe\u0301\u00a0 b\t"
    assert in_form([text], "none") == [text]


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("form", ["nfc", "nfkc"])
@settings(max_examples=100, deadline=None)
@given(odd)
def test_a_form_is_one(form: Form, lowercase: bool, text: str) -> None:
    """Applied again it changes nothing, and it is the same for canonical equivalents."""
    (once,) = in_form([text], form, lowercase=lowercase)
    assert in_form([once], form, lowercase=lowercase) == [once]
    assert " ".join(once.split()) == once
    for other in ("NFC", "NFD"):
        equal = unicodedata.normalize(other, text.replace("\ufeff", ""))
        known = not any(unicodedata.category(c) == "Cn" or c == "\U00011938" for c in equal)
        assert not known or in_form([equal], form, lowercase=lowercase) == [once]


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(GREEK), max_size=12).map("".join), st.text(KNOWN[:5000])))
def test_lower_case_is_pythons(text: str) -> None:
    assert lowercased(text) == text.lower()


def test_lower_case_is_pythons_for_every_character() -> None:
    text = "\n".join(KNOWN)
    assert lowercased(text) == text.lower()
    assert lowercased("ΛΟΓΟΣ Ο ΣΟΦΟΣ, Σ ΟΔΥΣΣΕΥΣ'") == "λογος ο σοφος, σ οδυσσευς'"
    # About every cased or ignorable character at a sigma.
    ends = [c for c in KNOWN[:12000] if c.lower() != c.upper() or unicodedata.category(c) in "MnLm"]
    for pattern in ("Α{}Σ", "ΑΣ{}", "ΑΣ{}Α", "{}Σ", "{}'Σ", "Σ'{}"):
        text = "\n".join(pattern.format(c) for c in ends)
        assert lowercased(text) == text.lower(), pattern


def test_what_may_join_is_all_that_does() -> None:
    parts = [unicodedata.decomposition(c).split() for c in KNOWN]
    seconds = {chr(int(p[1], 16)) for p in parts if len(p) == 2 and p[0][0] != "<"}
    marks = {c for c in KNOWN if unicodedata.combining(c)}
    assert [c for c in seconds | marks if not may_join(c)] == []
    assert not any(map(may_join, "aZé가一あ.,1"))


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("form", ["none", "nfc", "nfkc"])
@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
def test_tokenizers_of_every_kind_carry_the_form(kind: Kind, form: Form, lowercase: bool) -> None:
    texts = ["über L'été ﬁn , ΛΟΓΟΣ λογος a\u00a0b ."] * 3
    trained = train_tokenizer(kind, texts, form=form, lowercase=lowercase, vocab_size=200)
    tokenizer = Tokenizer.from_json(trained.to_json())
    assert tokenizer.form == form
    for text in [*ODD, "".join(ODD), " \u00a0ΣΑΣ e\u0301", "", "\ufeff"]:
        assert [tokenizer.normalized(text)] == in_form([text], form, lowercase=lowercase)
    usual = tokenizer.encode(["über L'été ﬁn ."])
    odd = tokenizer.encode(["\ufeff u\u0308ber \tL'e\u0301te\u0301\u202fﬁn\u00a0 .\u2028"])
    assert (odd == usual) == (form != "none")
    if form != "none":
        assert tokenizer.decode(odd) == tokenizer.decode(usual) == [
            *in_form(["über L'été ﬁn ."], form, lowercase=lowercase)
        ]  # fmt: skip
        assert tokenizer.encode(["\u00a0\ufeff\t"]) == [[]]
    if lowercase:
        assert len({tuple(ids) for ids in tokenizer.encode(["ΛΟΓΟΣ", "λογος"])}) == 1

"""Text that another program has cut into pieces keeps its marks, and is put together again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.config.load import config_from_dict
from dist_embed.data.cut_text import check_pieces
from dist_embed.data.settings import Form, Pieces
from dist_embed.data.stretches import encode_column
from dist_embed.data.token_shards import read_tokens
from dist_embed.data.tokenizer import END, UNKNOWN, Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.data.word_spills import WordSplitting, split_and_count
from dist_embed.errors import ConfigError, UserError
from dist_embed.parallel.group import Group
from dist_embed.training.evaluate import evaluate_translations
from dist_embed.training.translation import Written
from dist_embed.vectors.coverage import is_word
from dist_embed.vectors.match import word_in
from tests.unit.small_corpus import ODD, prepare, sentences, train_tokenizer, write_text

CUT: dict[Pieces, tuple[str, str]] = {
    "sentencepiece": ("▁The ▁hous es ▁are ▁ old .", "The houses are old."),
    "subword-nmt": ("The hou@@ ses are o@@ l@@ d .", "The houses are old ."),
}
ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
ODD_PIECES = [*ODD, " ", " ", "@@", "@@ ", "</s>", " </s> ", "▁a"]
odd_texts = st.lists(st.lists(st.sampled_from(ODD_PIECES), max_size=12).map("".join), max_size=6)


def cut_tokenizer(pieces: Pieces, texts: list[str], form: Form = "nfc") -> Tokenizer:
    path: dict[str, Any] = {"split_punctuation": False, "form": form, "pieces": pieces}
    trained = train_tokenizer("word", texts, lowercase=False, vocab_size=100, **path)
    return Tokenizer.from_json(trained.to_json())


@pytest.mark.parametrize("pieces", CUT)
@pytest.mark.parametrize("form", ["none", "nfc"])
def test_pieces_are_tokens_with_their_marks(pieces: Pieces, form: Form) -> None:
    text, whole = CUT[pieces]
    tokenizer = cut_tokenizer(pieces, [text], form)
    (ids,) = tokenizer.encode([f"{text} "])
    assert [tokenizer.token(i) for i in ids] == tokenizer.split(text) == text.split()
    assert tokenizer.decode([ids]) == tokenizer.uncut([text]) == [whole]
    assert (tokenizer.pieces, tokenizer.form) == (pieces, form)
    # An inner piece is not the word that is written the same.
    inner = {"sentencepiece": ("▁es", "es"), "subword-nmt": ("hou@@", "hou")}[pieces]
    both = cut_tokenizer(pieces, [" ".join(inner)])
    assert len(set(both.encode([" ".join(inner)])[0])) == len(inner)
    assert tokenizer.encode(["", " ", "  "]) == [[], [], []]
    usual = train_tokenizer("word", [text], split_punctuation=False)
    assert (usual.pieces, usual.uncut([text])) == ("none", [text])


@pytest.mark.parametrize("pieces", CUT)
def test_pieces_that_look_like_special_tokens_are_text(pieces: Pieces) -> None:
    text = "a </s> <unk> <s>"
    tokenizer = cut_tokenizer(pieces, [text])
    (ids,) = tokenizer.encode([text])
    assert not {END, UNKNOWN} & set(ids)
    assert tokenizer.decode([ids]) == [text]
    unknown = cut_tokenizer(pieces, ["a ▁b"]).encode([text])
    assert unknown[0][1:] == [UNKNOWN] * 3


@pytest.mark.parametrize("pieces", CUT)
@pytest.mark.parametrize("form", ["none", "nfkc"])
@settings(max_examples=60, deadline=None)
@given(odd_texts)
def test_columns_and_counts_are_those_of_single_texts(
    pieces: Pieces, form: Form, texts: list[str]
) -> None:
    tokenizer = cut_tokenizer(pieces, ["".join(ODD_PIECES[::2]), " ".join(ODD_PIECES)], form)
    assert encode_column(tokenizer, texts).to_pylist() == [
        tokenizer.encode([text])[0] for text in texts
    ]
    splitting = WordSplitting(False, False, form, pieces)
    found: Counter[str] = Counter()
    counted = split_and_count(texts, splitting).to_pydict()
    for word, count in zip(counted["word"], counted["count"], strict=True):
        found[word] += count
    assert found == Counter(word for text in texts for word in tokenizer.split(text))


@pytest.mark.parametrize("pieces", CUT)
def test_references_are_scored_as_translations_are_written(pieces: Pieces, tmp_path: Path) -> None:
    text, whole = CUT[pieces]
    corpora = {
        name: write_text(tmp_path, name, [(text, text)] * 3) for name in ("train", "validation")
    }
    path: dict[str, Any] = {"split_punctuation": False, "form": "nfc", "pieces": pieces}
    data = prepare(tmp_path / "data", corpora, **path)
    target = load_tokenizers(data.folder_uri)["target"]
    tokens = read_tokens(data.folder_uri, data.splits["train"].shards)
    assert target.decode([list(sentences(tokens)[0][1])]) == [whole]
    translation = mock.Mock(target=target, group=ALONE)
    translation.written.return_value = [Written(whole, whole)] * 3
    quality = evaluate_translations(
        translation, data.folder_uri, data, "validation", bleu_tokenize="none"
    )
    assert (quality.bleu, quality.chrf) == (pytest.approx(100), pytest.approx(100))


def test_text_that_is_cut_otherwise_than_configured_is_told(tmp_path: Path) -> None:
    def told(line: str, pieces: Pieces) -> list[str]:
        said: list[str] = []
        pairs = [("a b", line)] * 3 + [("c ▁d e@@ f", "g")]
        if pieces != "none":
            pairs = [(line, line)] * 3
        check_pieces(write_text(tmp_path, "train", pairs), pieces, said.append)
        return said

    cut, other = (CUT[pieces][0] for pieces in CUT)
    assert told("a b▁ c", "none") == told(cut, "sentencepiece") == told(other, "subword-nmt") == []
    with pytest.raises(UserError, match=r"3 of the first 4 target lines .*tokenizer\.pieces=sente"):
        told(cut, "none")
    assert ["tokenizer.pieces=subword-nmt" in line for line in told(other, "none")] == [True]
    # A side that is not cut stays as it is, but by sentencepiece's marks words would run together.
    for pieces in CUT:
        pairs = write_text(tmp_path, "one", [("a b", CUT[pieces][0])] * 3)
        if pieces == "subword-nmt":
            check_pieces(pairs, pieces, lambda line: None)
        else:
            with pytest.raises(UserError, match=r"is not allowed .* source lines"):
                check_pieces(pairs, pieces, lambda line: None)
    with pytest.raises(UserError, match=r"'sentencepiece' is not allowed .* source lines .* \(▁\)"):
        told(other, "sentencepiece")
    with pytest.raises(UserError, match=r"'subword-nmt' is not allowed .* source lines .* \(@@\)"):
        told(cut, "subword-nmt")


def test_pieces_are_no_words_of_a_file() -> None:
    tokenizer = cut_tokenizer("subword-nmt", ["hou@@ se tree"])
    assert [word_in(tokenizer, token) for token in ("hou@@", "se", "tree", "<unk>")] == [
        None, "se", "tree", None
    ]  # fmt: skip
    assert [is_word(tokenizer, token) for token in ("hou@@", "se")] == [False, True]
    plain = Tokenizer.from_words(["hou@@"], lowercase=False, split_punctuation=False)
    assert word_in(plain, "hou@@") == "hou@@"


@pytest.mark.parametrize(
    ("section", "key", "value", "refused"),
    [
        ("tokenizer", "lowercase", True, "tokenizer.lowercase: true is not allowed"),
        ("search", "replace_unknown", "copy", "search.replace_unknown: 'copy' is not allowed"),
    ],
)
def test_what_needs_whole_words_is_refused(
    section: str, key: str, value: Any, refused: str
) -> None:
    values: dict[str, Any] = {
        "run": {"uri": "r"}, "train": {"max_steps": 1}, "data": {"synthetic": {}},
        "tokenizer": {"pieces": "subword-nmt", "split_punctuation": False},
    }  # fmt: skip
    config_from_dict(values)
    values.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError, match=refused):
        config_from_dict(values)


@pytest.mark.parametrize("other", [{"split_punctuation": True}, {"kind": "bpe"}])
def test_pieces_go_with_words_that_are_not_split(other: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "run": {"uri": "r"}, "train": {"max_steps": 1}, "data": {"synthetic": {}},
        "tokenizer": {"pieces": "sentencepiece", "split_punctuation": False},
    }  # fmt: skip
    assert config_from_dict(values).tokenizer.pieces == "sentencepiece"
    values["tokenizer"] |= other
    with pytest.raises(ConfigError, match=r"tokenizer\.pieces: 'sentencepiece' is not allowed"):
        config_from_dict(values)

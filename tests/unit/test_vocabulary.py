"""Vocabularies of pieces, learned in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_embed.data import vocabulary
from dist_embed.data.executor import Executor
from dist_embed.data.processes import ThisMachine
from dist_embed.data.settings import Kind
from dist_embed.data.text.rows import Pair
from dist_embed.data.tokenizer import Tokenizer
from tests.unit.small_corpus import recipe, write_text

PAIRS = [("aa bb bb cc", "zz zz zz zz yy"), ("bb dd", "zz aa aa aa")] * 3


def counts_of(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    ids = list(chain.from_iterable(tokenizer.encode(texts)))
    return np.bincount(ids, minlength=tokenizer.size)


class Pool:
    """An `EncodingPool` without processes."""

    def __init__(self, source: Tokenizer, target: Tokenizer) -> None:
        self.tokenizers = (source, target)

    def count_tokens(self, pairs: Iterable[Pair], block: int) -> dict[str, NDArray[np.int64]]:
        sides = zip(*pairs, strict=True)
        return {
            name: counts_of(tokenizer, list(texts))
            for name, tokenizer, texts in zip(
                ("source", "target"), self.tokenizers, sides, strict=True
            )
        }


@contextmanager
def pool_here(source: Tokenizer, target: Tokenizer, executor: Executor) -> Iterator[Pool]:
    yield Pool(source, target)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_are_ordered_by_how_often_their_side_or_both_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, shared: bool
) -> None:
    monkeypatch.setattr(vocabulary, "encoding_pool", pool_here)
    text = write_text(tmp_path, "train", PAIRS)
    found = vocabulary.learn_vocabularies(
        text, *recipe(kind, shared=shared, vocab_size=60), ThisMachine(1), lambda line: None,
        str(tmp_path),
    )  # fmt: skip
    first = {}
    for place, side in enumerate(("source", "target")):
        tokenizer, counts = found.tokenizers[side], found.counts[side]
        texts = [text for pair in PAIRS for text in (pair if shared else [pair[place]])]
        assert counts.tolist() == counts_of(tokenizer, texts).tolist()
        assert counts[4:].tolist() == sorted(counts[4:], reverse=True)
        first[side] = tokenizer.token(4)
    assert (found.tokenizers["source"] is found.tokenizers["target"]) == shared
    if kind == "bpe":
        assert first == {"source": "▁zz" if shared else "▁bb", "target": "▁zz"}

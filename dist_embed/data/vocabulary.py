"""The vocabularies of both sides, learned from the training text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.corpus import ParallelText, read_pairs
from dist_embed.data.encoding import encoding_pool
from dist_embed.data.executor import Executor
from dist_embed.data.settings import TokenizerSection
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.text_form import TextForm
from dist_embed.data.token_shards import SIDES
from dist_embed.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from dist_embed.data.word_counts import WordCounts, count_words
from dist_embed.data.word_spills import WordSplitting
from dist_embed.observe.events import Watch, unwatched

# Sentence pairs per block when pieces are counted.
COUNT_BLOCK = 20_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Vocabularies:
    """A tokenizer for ``source`` and ``target``, and [V] how often each id occurs in the text.

    Where the vocabulary is shared, both have the same tokenizer and the counts of both sides.
    """

    tokenizers: dict[str, Tokenizer]
    counts: dict[str, NDArray[np.int64]]


def learn_vocabularies(
    text: ParallelText,
    settings: TokenizerSection,
    form: TextForm,
    executor: Executor,
    say: Say,
    folder: str,
    watch: Watch = unwatched,
) -> Vocabularies:
    """Learn tokenizers whose ids are ordered by frequency, and say how large they became.

    Args:
        text: the training text; read several times for ``bpe`` and ``unigram``.
        settings: what to learn.
        form: what text is brought to first.
        executor: who splits and counts.
        say: takes lines of progress.
        folder: a local one, where tables of words are written and stay mapped.
        watch: shows how far the text has been read.
    """
    say(f"learning the {settings.kind} vocabulary")
    if settings.kind == "word":
        return _words(text, settings, form, executor, say, folder, watch)
    return _pieces(settings.kind, text, settings, form, executor, say, watch)


def _words(
    text: ParallelText,
    settings: TokenizerSection,
    form: TextForm,
    executor: Executor,
    say: Say,
    folder: str,
    watch: Watch,
) -> Vocabularies:
    found = count_words(
        watch("counting words", read_pairs(text)),
        WordSplitting(form.lowercase, settings.split_punctuation, form.form, settings.pieces),
        shared=settings.shared,
        keep=settings.vocab_size - len(SPECIAL_TOKENS),
        min_count=settings.min_count,
        executor=executor,
    )
    tokenizers: dict[str, Tokenizer] = {}
    for side, words in found.items():
        if settings.shared and tokenizers:
            tokenizers[side] = tokenizers["source"]
            continue
        tokenizers[side] = TableTokenizer.write(
            os.path.join(folder, f"words.{side}.arrow"),
            words.words,
            lowercase=form.lowercase,
            split_punctuation=settings.split_punctuation,
            form=form.form,
            pieces=settings.pieces,
        )
        say(f"{_name(side, settings)}: {_size(tokenizers[side], settings)}; {_left_out(words)}")
    return Vocabularies(tokenizers, {side: words.by_id() for side, words in found.items()})


def _pieces(
    kind: Literal["bpe", "unigram"],
    text: ParallelText,
    settings: TokenizerSection,
    form: TextForm,
    executor: Executor,
    say: Say,
    watch: Watch,
) -> Vocabularies:
    def train(texts: Iterator[str]) -> Tokenizer:
        return Tokenizer.train(
            texts, kind, vocab_size=settings.vocab_size, min_count=settings.min_count,
            lowercase=form.lowercase, form=form.form,
        )  # fmt: skip

    if settings.shared:
        pairs = watch("learning pieces", read_pairs(text))
        both = train(sentence for pair in pairs for sentence in pair)
        tokenizers = {"source": both, "target": both}
    else:
        tokenizers = {
            side: train(pair[place] for pair in watch(f"learning {side} pieces", read_pairs(text)))
            for place, side in enumerate(SIDES)
        }
    with encoding_pool(tokenizers["source"], tokenizers["target"], executor) as pool:
        counts = pool.count_tokens(watch("counting pieces", read_pairs(text)), COUNT_BLOCK)
    if settings.shared:
        counts = dict.fromkeys(SIDES, counts["source"] + counts["target"])
    tokenizers = _order_by_frequency(tokenizers, counts, settings.shared)
    for side in SIDES[: 1 if settings.shared else 2]:
        say(f"{_name(side, settings)}: {_size(tokenizers[side], settings)}")
    return Vocabularies(tokenizers, counts)


def _order_by_frequency(
    tokenizers: dict[str, Tokenizer], counts: dict[str, NDArray[np.int64]], shared: bool
) -> dict[str, Tokenizer]:
    """Renumber the ids; ``counts`` is brought into the new order."""
    ordered: dict[str, Tokenizer] = {}
    for side in SIDES:
        if shared and ordered:
            ordered[side], counts[side] = ordered["source"], counts["source"]
            continue
        count = counts[side]
        ordered[side] = tokenizers[side].ordered_by(count.tolist())
        num_special = len(SPECIAL_TOKENS)
        counts[side] = np.concatenate(
            [count[:num_special], -np.sort(-count[num_special:], kind="stable")]
        )
    return ordered


def _name(side: str, settings: TokenizerSection) -> str:
    return "vocabulary of both sides" if settings.shared else f"{side} vocabulary"


def _size(tokenizer: Tokenizer, settings: TokenizerSection) -> str:
    """How large it became, and that a larger one was allowed."""
    what = "words" if settings.kind == "word" else "pieces"
    learned = f"{tokenizer.size:,} {what}, {len(SPECIAL_TOKENS)} special tokens among them"
    if tokenizer.size < settings.vocab_size:
        return f"{learned} (tokenizer.vocab_size={settings.vocab_size} allows more)"
    return learned


def _left_out(words: WordCounts) -> str:
    share = words.outside / max(words.running, 1)
    return (
        f"the text has {words.distinct:,} different words, and {words.outside:,} of its "
        f"{words.running:,} running words ({share:.2%}) are outside the vocabulary"
    )

"""Validation loss and translation quality of a sharded model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dist_embed.data.loader import Loader, Position
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import PreparedData, read_texts
from dist_embed.errors import UserError
from dist_embed.model.output import sharded_cross_entropy
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.run.metrics import SAMPLE_KEYS
from dist_embed.training.assemble import TranslationModel
from dist_embed.training.results import AgainstExact
from dist_embed.training.scoring import Scorer, score_of_first
from dist_embed.training.translation import TooLongError, Translator

# Of a split searched with candidate lists, that many sentences are searched among all words too.
EXACT_SENTENCES = 100
# Of each translation of a split, that many sentences are shown as they come out over time.
SAMPLE_SENTENCES = 5


@dataclass(frozen=True)
class Quality:
    """Translation quality of one split.

    Attributes:
        bleu: corpus BLEU, 0 to 100, see `Scorer`.
        chrf: chrF2, 0 to 100.
        signature: how BLEU was computed.
        sentences: number of sentences.
        seconds: time of the search.
        translations: the translations, in order.
        scored: the same with one character for an unknown word, which no reference has.
        samples: source, reference and translation of some sentences, the same ones each time.
        neighbors: of words that are watched, the nearest words with their cosine.
    """

    bleu: float
    chrf: float
    signature: str
    sentences: int
    seconds: float
    translations: list[str]
    scored: list[str]
    samples: list[dict[str, str]] = field(default_factory=list)
    neighbors: dict[str, list[tuple[str, float]]] = field(default_factory=dict)


@torch.no_grad()
def exact_loss(
    translation_model: TranslationModel,
    data_uri: str,
    data: PreparedData,
    split: str,
    batch_tokens: int,
    *,
    at_least: float = math.inf,
) -> float:
    """Mean -log p per target token over a split, exact, in float32; the same on every worker.

    Collective.

    Args:
        translation_model: model and tables.
        data_uri: the prepared data.
        data: its index.
        split: which part of it.
        batch_tokens: budget of a step.
        at_least: so many target tokens of the split, the same ones for equal data and budget; all
            where it has fewer.
    """
    group, lookup = translation_model.group, translation_model.lookup
    loader = Loader(
        data_uri,
        data.splits[split].shards,
        index=index_of(data, split),
        batch_tokens=batch_tokens,
        seed=0,
        rank=group.rank,
        num_workers=group.num_workers,
        accumulate=1,
        num_ids=lookup.num_ids,
    )
    exact, table = translation_model.shard.in_float32(), lookup.table_of["output"]
    translation_model.transformer.eval()
    total, tokens = 0.0, 0
    for work in loader.steps(Position()):
        batch = work.batches[0].to(group.device)
        rows = lookup.lookup({"source": [batch.source], "target": [batch.target_input]})
        hidden = translation_model.transformer(
            rows.vectors("source", 0),
            batch.source_lengths,
            rows.vectors("target", 0),
            batch.token_positions,
            batch.rectangles,
        )
        _, nll = sharded_cross_entropy(
            hidden,
            lookup.orders[table].rows_of(batch.target_output),
            lookup.weight(table),
            exact,
            work.token_counts[0],
        )
        total, tokens = total + float(nll), tokens + work.global_tokens
        if work.after.epoch > 0 or tokens >= at_least:
            break
    # The sums are those of all workers, but each has added them up by itself: other processors have
    # other last bits, and what follows from the loss is to be the same everywhere.
    return float(same_text_from_first(repr(total / tokens), group))


def evaluate_translations(
    translator: Translator,
    data_uri: str,
    data: PreparedData,
    split: str,
    *,
    bleu_tokenize: str,
    say: Callable[[str], None] = lambda line: None,
) -> Quality:
    """Translate a held-out split; worker 0 scores it, see `Scorer`. The same on every worker.

    ``say`` takes a line about sentences that were too long. Raises UserError where they are
    refused. Collective.
    """
    group, scorer = translator.group, None
    with all_or_none(group):
        sources, references = read_texts(data_uri, data.splits[split])
        if group.is_first:
            scorer = Scorer(references, translator.target, bleu_tokenize=bleu_tokenize)
    unknown = same_text_from_first(scorer.unknown if scorer else "", group)
    started = time.perf_counter()
    try:
        written = translator.written(sources, unknown)
    except TooLongError as exc:
        raise UserError(f"{split}, line {exc.place + 1:,}: {exc}") from None
    seconds = time.perf_counter() - started
    if cut := [place for place, one in enumerate(written) if one.cut]:
        say(f"{split}: {translator.settings.told_of_cut(len(cut), cut[0] + 1)}")
    scored = [one.marked for one in written]
    score = score_of_first(scorer, scored, group)
    return Quality(
        bleu=score.bleu,
        chrf=score.chrf,
        signature=score.signature,
        sentences=len(written),
        seconds=seconds,
        translations=[one.shown for one in written],
        scored=scored,
        samples=[
            dict(zip(SAMPLE_KEYS, (sources[i], references[i], written[i].shown), strict=True))
            for i in spread_over(len(sources), SAMPLE_SENTENCES)
        ],
    )


def spread_over(number: int, most: int) -> list[int]:
    """Of so many places at most ``most``, evenly spread."""
    count = min(number, most)
    return [place * number // count for place in range(count)]


def against_exact(
    exact: Translator,
    quality: Quality,
    data_uri: str,
    data: PreparedData,
    split: str,
    *,
    bleu_tokenize: str,
) -> AgainstExact:
    """What is lost by candidate lists: some sentences are searched once more, among all words.

    Args:
        exact: translates among all words.
        quality: of the whole split, translated with lists.
        data_uri: the prepared data.
        data: its index.
        split: which part of it was translated.
        bleu_tokenize: see `Scorer`.

    Collective.
    """
    group, scorer = exact.group, None
    with all_or_none(group):
        sources, references = read_texts(data_uri, data.splits[split])
        places = spread_over(len(sources), EXACT_SENTENCES)
        if group.is_first:
            chosen = [references[place] for place in places]
            scorer = Scorer(chosen, exact.target, bleu_tokenize=bleu_tokenize)
    unknown = same_text_from_first(scorer.unknown if scorer else "", group)
    written = exact.written([sources[place] for place in places], unknown)
    bleu, exact_bleu = (
        score_of_first(scorer, texts, group).bleu
        for texts in ([quality.scored[place] for place in places], [one.marked for one in written])
    )
    same = sum(one.shown == quality.translations[p] for p, one in zip(places, written, strict=True))
    return AgainstExact(len(places), bleu, exact_bleu, same)

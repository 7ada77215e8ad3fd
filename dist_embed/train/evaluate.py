"""Validation loss and translation quality of a sharded model."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from dist_embed.data.loader import Loader, Position
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import PreparedData, read_texts
from dist_embed.model.output import sharded_cross_entropy
from dist_embed.train.assemble import Translator
from dist_embed.train.scoring import Scorer
from dist_embed.train.translation import Translation


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
    """

    bleu: float
    chrf: float
    signature: str
    sentences: int
    seconds: float
    translations: list[str]
    scored: list[str]


@torch.no_grad()
def exact_loss(
    translator: Translator,
    data_uri: str,
    data: PreparedData,
    split: str,
    batch_tokens: int,
    *,
    at_least: float = math.inf,
) -> float:
    """Mean -log p per target token over a split, exact, in float32. Collective.

    Args:
        translator: model and tables.
        data_uri: the prepared data.
        data: its index.
        split: which part of it.
        batch_tokens: budget of a step.
        at_least: so many target tokens of the split, the same ones for equal data and budget; all
            where it has fewer.
    """
    group, lookup = translator.group, translator.lookup
    loader = Loader(
        data_uri,
        data.splits[split].shards,
        index=index_of(data, split),
        batch_tokens=batch_tokens,
        seed=0,
        rank=group.rank,
        num_workers=group.num_workers,
        accumulate=1,
        num_ids=lookup.rows_of_role,
    )
    exact = translator.shard.in_float32()
    translator.transformer.eval()
    total, tokens = 0.0, 0
    for work in loader.steps(Position()):
        batch = work.batches[0].to(group.device)
        rows = lookup.lookup({"source": [batch.source], "target": [batch.target_input]})
        hidden = translator.transformer(
            rows.vectors("source", 0),
            batch.source_lengths,
            rows.vectors("target", 0),
            batch.token_positions,
            batch.rectangles,
        )
        _, nll = sharded_cross_entropy(
            hidden,
            lookup.output_rows_of(batch.target_output),
            lookup.output_weight(),
            exact,
            work.token_counts[0],
        )
        total, tokens = total + float(nll), tokens + work.global_tokens
        if work.after.epoch > 0 or tokens >= at_least:
            break
    return total / tokens


def evaluate_translations(
    translation: Translation,
    data_uri: str,
    data: PreparedData,
    split: str,
    *,
    bleu_tokenize: str,
) -> Quality:
    """Translate a held-out split and score it, on every worker: see `Scorer`. Collective."""
    sources, references = read_texts(data_uri, data.splits[split])
    scorer = Scorer(references, translation.target, bleu_tokenize=bleu_tokenize)
    started = time.perf_counter()
    written = translation.written(sources, scorer.unknown)
    seconds = time.perf_counter() - started
    scored = [one.marked for one in written]
    score = scorer.score(scored)
    return Quality(
        bleu=score.bleu,
        chrf=score.chrf,
        signature=score.signature,
        sentences=len(written),
        seconds=seconds,
        translations=[one.shown for one in written],
        scored=scored,
    )

"""A small synthetic corpus on disk, and how the tests prepare and read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_embed.data.corpus import Pair, ParallelText
from dist_embed.data.encoding import LengthRule
from dist_embed.data.prepare import prepare_data
from dist_embed.data.synthetic import SyntheticLanguage
from dist_embed.data.token_shards import PreparedData, TokenPairs
from dist_embed.data.tokenizer import Kind
from dist_embed.data.vocabulary import TokenizerRecipe

SHARD_SENTENCES = 60
KEEP_ALL = LengthRule(1000, "drop")
Sentence = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Prepared:
    """Prepared data and where its text lies."""

    uri: str
    data: PreparedData
    corpora: dict[str, ParallelText]
    pairs: dict[str, list[Pair]]


def recipe(kind: Kind = "word", **changes: Any) -> TokenizerRecipe:
    values: dict[str, Any] = {
        "vocab_size": 400, "min_count": 1, "shared": True, "lowercase": False,
        "split_punctuation": True,
    }  # fmt: skip
    return TokenizerRecipe(kind, **(values | changes))


def write_text(folder: Path, name: str, pairs: list[Pair]) -> ParallelText:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{side}.txt" for side in ("source", "target")]
    for place, file in enumerate(files):
        file.write_text("".join(f"{pair[place]}\n" for pair in pairs))
    return ParallelText((str(files[0]),), (str(files[1]),))


def prepare(
    uri: Path,
    corpora: dict[str, ParallelText],
    kind: Kind = "word",
    *,
    rule: LengthRule = KEEP_ALL,
    num_processes: int = 1,
    shard_sentences: int = SHARD_SENTENCES,
    say: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> PreparedData:
    return prepare_data(
        str(uri), corpora, recipe(kind, **changes), rule, settings={"tokenizer.kind": kind},
        num_processes=num_processes, shard_sentences=shard_sentences, say=say,
    )  # fmt: skip


def synthetic_corpora(
    folder: Path,
) -> tuple[dict[str, ParallelText], dict[str, list[Pair]]]:
    language = SyntheticLanguage(nouns=20, verbs=10, adjectives=8, seed=3)
    sizes = {"train": 290, "validation": 12, "test": 130}
    pairs = {name: list(language.pairs(size, name, 3)) for name, size in sizes.items()}
    return {name: write_text(folder, name, pairs[name]) for name in pairs}, pairs


def sentences(tokens: TokenPairs) -> list[Sentence]:
    """The id pairs that token shards hold, in order."""
    source = [
        tuple(
            tokens.source_tokens[tokens.source_offsets[i] : tokens.source_offsets[i + 1]].tolist()
        )
        for i in range(len(tokens))
    ]
    target = [
        tuple(
            tokens.target_tokens[tokens.target_offsets[i] : tokens.target_offsets[i + 1]].tolist()
        )
        for i in range(len(tokens))
    ]
    return list(zip(source, target, strict=True))


def count(items: list[Sentence]) -> Counter[Sentence]:
    return Counter(items)

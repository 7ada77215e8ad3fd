"""What a plan knows of a run's text: vocabularies, frequencies of words, how full steps are.

Where data are prepared they are asked, else bounds and Zipf's law serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dist_embed.config.schema import Config
from dist_embed.data.pool_sizes import PAIR_TOKENS
from dist_embed.errors import UserError
from dist_embed.planning.words import Words, counted_words, zipf_words
from dist_embed.storage import uri as storage

if TYPE_CHECKING:
    from dist_embed.data.token_shards import PreparedData

_SIDES = ("source", "target")

# Of a step's budget, that is not the padding of units, and of the longer sides of pairs, that is
# tokens of the side that has more of them (docs/benchmarks/balance.md).
UNPADDED, LONGER_SIDE = 0.95, 0.94
_BLOCKS = 32  # of a text, whose lengths are looked at


@dataclass(frozen=True)
class Text:
    """A run's text.

    Attributes:
        vocabulary_size: V of each side.
        words: of each side, and of ``both``, as a table is asked for them.
        source_share: source tokens for each token of a step's budget, without padding.
        target_share: target tokens likewise, ends of sentences among them.
        pair_tokens: target tokens of a pair.
        sentences: pairs; None: not known.
        prepared: whether prepared data were asked; else it is by Zipf's law, and V a bound.
        word_tables: whether words are in tables on disk, which take no memory.
    """

    vocabulary_size: dict[str, int]
    words: dict[str, Words]
    source_share: float
    target_share: float
    pair_tokens: float
    sentences: int | None
    prepared: bool
    word_tables: bool


def text_of(config: Config) -> Text:
    """Of a configuration. Reads prepared data, where there are any, once for all plans.

    Raises UserError: their sides have a vocabulary each, and are to share a table.
    """
    if not storage.names_in(config.data.uri):
        return expected_text(config, config.tokenizer.vocab_size)
    # Imported here: pyarrow and the like take longer than a plan without data.
    from dist_embed.data.prepared_folder import prepared_folder
    from dist_embed.data.token_shards import INDEX_NAME

    folder = prepared_folder(config.data.uri)
    if not storage.exists(storage.join(folder, INDEX_NAME)):
        return expected_text(config, config.tokenizer.vocab_size)
    found = _prepared_text(folder)
    if config.model.share_embeddings == "all" and "both" not in found.words:
        raise UserError(
            f"{config.data.uri} holds data prepared with tokenizer.shared=false: not allowed with "
            "model.share_embeddings=all; give data.uri another folder, or prepare it again: "
            "dist-embed prepare CONFIG --force"
        )
    return found


def expected_text(config: Config, num_words: int) -> Text:
    """Of a vocabulary that is not there yet, by Zipf's law."""
    share = UNPADDED * LONGER_SIDE
    words = zipf_words(num_words)
    return Text(
        dict.fromkeys(_SIDES, num_words), dict.fromkeys((*_SIDES, "both"), words), share, share,
        PAIR_TOKENS * LONGER_SIDE, made_up(config),
        prepared=False, word_tables=config.tokenizer.kind == "word",
    )  # fmt: skip


def made_up(config: Config) -> int | None:
    """Pairs, where the data are made up: they are known then."""
    made = config.data.words or config.data.synthetic or config.data.inflected
    return made.sentences if made else None


@lru_cache(maxsize=32)  # what a preparation has written stays as it is
def _prepared_text(folder: str) -> Text:
    from dist_embed.data.token_shards import PreparedData

    data = PreparedData.read(folder)
    shards = data.splits["train"].shards
    source = sum(shard.source_tokens for shard in shards)
    target, sentences = data.splits["train"].target_tokens, data.splits["train"].sentences
    longer = _longer_sides(data, source, target)
    words = {side: _counted(data, [side]) for side in _SIDES}
    if data.shared_vocabulary:
        words["both"] = _counted(data, list(_SIDES))
    return Text(
        dict(data.vocabulary_size), words, UNPADDED * source / longer, UNPADDED * target / longer,
        target / max(1, sentences), sentences,
        prepared=True, word_tables=data.word_tables,
    )  # fmt: skip


def _longer_sides(data: PreparedData, source: int, target: int) -> float:
    """Tokens of the longer side of each pair, by pairs of some blocks, where lengths are known."""
    import numpy as np

    from dist_embed.data.token_blocks import index_of, open_blocks

    if index_of(data, "train") is None:
        return max(source, target, 1) / LONGER_SIDE
    blocks = open_blocks(data, "train")
    some = range(0, len(blocks), max(1, len(blocks) // _BLOCKS))
    of_source, of_target = blocks.lengths(some)
    ended = of_target + 1
    return max(1.0, target * float(np.maximum(of_source, ended).sum() / max(1, ended.sum())))


def _counted(data: PreparedData, sides: list[str]) -> Words:
    import numpy as np

    from dist_embed.data.prepare import read_counts, read_occurrences

    counts = read_occurrences(data, sides)
    if counts is None:
        counts = read_counts(data, sides[0])
    often, words = np.unique(counts, return_counts=True)
    return counted_words(zip(often.tolist(), words.tolist(), strict=True))

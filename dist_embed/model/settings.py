"""Settings of the translation model and of search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_embed.section import (
    EXPERT,
    MAY_CHANGE,
    Later,
    MaybeNo,
    MiB,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Section,
    Width,
)

ShareEmbeddings = Literal["none", "decoder", "all"]
ReplaceUnknown = Literal["no", "copy", "lexicon"]
TooLong = Literal["cut", "refuse"]
# Those of sacrebleu 2.6.0.
BleuTokenizer = Literal[
    "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200",
    "spBLEU-1K", "none",
]  # fmt: skip


# Of a source text, for each token that is translated; in no language tokens have so many.
CHARACTERS_OF_TOKEN = 64


class ModelSection(Section):
    """The translation model."""

    width: Width = Field(128, description="Width of encoder and decoder; even.")
    feed_forward: Width = Field(256, description="Inner width of feed-forward layers.")
    heads: Width = Field(4, description="Attention heads; divides `width`.")
    encoder_layers: int = Field(4, gt=0, le=1000, description="Encoder layers.")
    decoder_layers: int = Field(4, gt=0, le=1000, description="Decoder layers.")
    dropout: Probability = Field(
        0.1, description="On embeddings, residuals and feed-forward; rounded to 1/256."
    )
    attention_dropout: Annotated[Probability, EXPERT] = Field(
        0.0, description="On attention weights."
    )
    share_embeddings: ShareEmbeddings = Field(
        "decoder", description="Which of source, target and output use one table."
    )
    logits_block_mib: Annotated[MiB | Literal["auto"], MAY_CHANGE, EXPERT] = Field(
        "auto",
        description="Largest block of logits held at once, MiB per worker. `auto`: 8 on the CPU, "
        "on a GPU by its memory and a worker's rows, from 256 on.",
    )
    output: Literal["exact", "sampled"] = Field(
        "exact",
        description="`exact`: softmax over the vocabulary in every step, refused where a step "
        "would surely take more than a minute; `sampled`: over the right "
        "word and `num_samples` others, at a cost that does not grow with the vocabulary.",
    )
    num_samples: PositiveInt | Literal["auto"] = Field(
        8192,
        description="`sampled`: negatives that all tokens of a step share. `auto`: 8192, and from "
        "4,096 `train.batch_tokens` on more, as their root; at most all words.",
    )
    batch_negatives: Annotated[bool, Later(False), EXPERT] = Field(
        False,
        description="`sampled`: the right words of a worker's other sentences are negatives too. "
        "They cost no exchange; which ones, depends on the number of workers.",
    )
    sampler: Annotated[Literal["log_uniform", "unigram"], EXPERT] = Field(
        "log_uniform", description="`sampled`: by rank (Zipf's law), or by count^`sampler_power`."
    )
    sampler_power: Annotated[float, Field(ge=0, le=1), EXPERT] = Field(
        0.75, description="`unigram`: the power α; 0 draws evenly, 1 by frequency."
    )


class SearchSection(Section):
    """Beam search and scoring."""

    beam: int = Field(5, gt=0, le=1000, description="Hypotheses kept per sentence; 1 is greedy.")
    length_penalty: float = Field(
        1.0, ge=0, le=10, description="α: hypotheses are ranked by log probability / length^α."
    )
    max_length_ratio: Annotated[float, EXPERT] = Field(
        1.5, gt=0, le=1000, description="Longest translation: this × source tokens + 10."
    )
    batch_tokens: int = Field(
        2048,
        gt=0,
        le=10_000_000,
        description="Source tokens searched at once, per worker, with end marks and padding: as "
        "many sentences as fit, at least one. Each has `beam` hypotheses.",
    )
    max_source_tokens: PositiveInt = Field(
        1024,
        description="Longest sentence that is translated, in source tokens; nor is more looked at "
        f"than {CHARACTERS_OF_TOKEN} characters for each.",
    )
    too_long: TooLong = Field(
        "cut",
        description="What happens to longer ones: only the first `max_source_tokens` are "
        "translated, and the sentences are counted; or it is an error. A training cuts.",
    )
    candidates: Annotated[NonNegativeInt | Literal["auto"], EXPERT] = Field(
        "auto",
        description="Search only these many most frequent words of the target side and the likely "
        "translations of the sentence's words, at a cost that does not grow with the vocabulary; "
        "0: all words. `auto`: 30,000 where the target side has over a million words and there is "
        "a lexicon (`data.lexicon_translations`), else all.",
    )
    candidate_translations: Annotated[PositiveInt, EXPERT] = Field(
        10,
        description="`candidates`: translations of each source word, from the lexicon; with "
        "`auto` as many as that has, if it has fewer.",
    )
    replace_unknown: Annotated[ReplaceUnknown, MaybeNo] = Field(
        "no",
        description="What `<unk>` in a translation becomes: the source word it looks at (`copy`), "
        "or that word's translation where the lexicon has one (`lexicon`).",
    )
    bleu_tokenize: Annotated[BleuTokenizer, EXPERT] = Field(
        "13a",
        description="sacrebleu's tokenizer; `none` for text that is tokenised. MeCab's need "
        "`sacrebleu[ja]` or `sacrebleu[ko]`, those of pieces (`spm`, `flores`, `spBLEU`) "
        "`sentencepiece` and a model, which is downloaded once. Whichever it is, an unknown word "
        "counts as one that matches nothing, and both sides are compared in the run's form of "
        "text.",
    )

    def longest(self, source_tokens: int) -> int:
        """Tokens of the longest translation, its end mark included."""
        return int(self.max_length_ratio * source_tokens) + 10

    @property
    def most_characters(self) -> int:
        """Of a source text; what is behind them is behind its last token that is translated."""
        return CHARACTERS_OF_TOKEN * self.max_source_tokens

    def told_of_cut(self, count: int, first: int) -> str:
        """A line for the user: so many were too long and were cut, the first being this line."""
        return (
            f"lines with more than {self.max_source_tokens:,} source tokens "
            f"(search.max_source_tokens): {count:,}, the first is line {first:,}; what is behind "
            "was not translated"
        )

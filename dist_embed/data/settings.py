"""Settings of the corpora, of prepared data and of tokenizers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_embed.section import (
    CORPUS_FILES,
    EXPERT,
    MAY_CHANGE,
    MOST_OF_ANYTHING,
    NO_RESULT,
    NOT_PREPARED,
    Later,
    NonNegativeInt,
    Paths,
    PositiveInt,
    Section,
    Seed,
)

Files = str | list[str]
Kind = Literal["word", "bpe", "unigram"]
# Into what text has been cut by another program before it comes here, with its marks: U+2581 at the
# beginning of a word, or "@@" where one goes on.
Pieces = Literal["none", "sentencepiece", "subword-nmt"]
# none: text stays as it is; nfc, nfkc: blanks are folded too. The one that tells most apart first.
Form = Literal["none", "nfc", "nfkc"]
Quoting = Literal["auto", "csv", "none"]


class CorpusSection(Section):
    """Parallel text: either two aligned lists of files, or files that hold both sides."""

    source: Annotated[Files | None, Paths, CORPUS_FILES] = Field(
        None,
        description="Source-side text files, a sentence a line (paths, URLs or globs; may be .gz, "
        ".zst, .bz2, .xz or .zip).",
    )
    target: Annotated[Files | None, Paths, CORPUS_FILES] = Field(
        None, description="Target-side files, aligned with `source`."
    )
    pairs: Annotated[Files | None, Paths, CORPUS_FILES] = Field(
        None,
        description="Instead: files with both sides: .tsv, .csv, .jsonl, .tmx, .parquet, or a .zip "
        "with a file of each side (docs/formats.md).",
    )
    source_column: str | PositiveInt = Field(
        "source",
        description="Column of `pairs` with the source text: its name (`translation.en` within "
        "another), a language, or its number from 1 where the first line is text.",
    )
    target_column: str | PositiveInt = Field(
        "target", description="Column of `pairs` with the target text."
    )
    # What is older took quote signs of TSV for text, as `auto` does where it takes them at all.
    quoting: Annotated[Quoting, Later("auto")] = Field(
        "auto",
        description="Quote signs in tables: `csv`: around cells, as pandas and csv.writer write "
        "them; `none`: text; `auto`: the first in .csv, else the second, and cells that look "
        "quoted are refused.",
    )
    wrong_rows: Annotated[Literal["refuse", "skip"], Later("refuse")] = Field(
        "refuse",
        description="What happens to rows that cannot be read: no UTF-8, too long, columns "
        "missing; `skip`: they are left out, and counted.",
    )
    max_line_bytes: Annotated[int, Field(gt=0, le=2**30), Later(2**20), EXPERT] = Field(
        2**20, description="Longer lines, and cells, cannot be read, so that none fills the memory."
    )


class SyntheticSection(Section):
    """A generated corpus in which word order and agreement decide the translation."""

    sentences: PositiveInt = Field(20000, description="Training sentence pairs.")
    held_out: Annotated[PositiveInt, EXPERT] = Field(
        500, description="Validation pairs, and as many test pairs."
    )
    nouns: Annotated[PositiveInt, EXPERT] = Field(120, description="Noun stems.")
    verbs: Annotated[PositiveInt, EXPERT] = Field(60, description="Verb stems.")
    adjectives: Annotated[PositiveInt, EXPERT] = Field(40, description="Adjective stems.")
    seed: Annotated[Seed, EXPERT] = Field(1, description="Decides lexicon and sentences.")


class InflectedSection(Section):
    """A generated corpus in two languages with many forms of many stems: with these defaults over a
    million words on each side, most of them rare. A stem has one translation that nothing but
    itself tells; its ending and its place follow from the sentence.
    """

    sentences: PositiveInt = Field(1_000_000, description="Training sentence pairs.")
    held_out: Annotated[PositiveInt, EXPERT] = Field(
        2000, description="Validation pairs, and as many test pairs."
    )
    nouns: Annotated[PositiveInt, EXPERT] = Field(
        220_000, description="Noun stems; 10 forms each, 8 in the target."
    )
    verbs: Annotated[PositiveInt, EXPERT] = Field(
        60_000, description="Verb stems; 3 forms each, 6 in the target."
    )
    adjectives: Annotated[PositiveInt, EXPERT] = Field(
        40_000, description="Adjective stems; 2 forms each, 6 in the target."
    )
    exponent: Annotated[float, EXPERT] = Field(
        0.8,
        ge=0,
        le=100,
        description="A class's stem number r is drawn with a probability ∝ 1 / r^`exponent`.",
    )
    seed: Annotated[Seed, EXPERT] = Field(1, description="Decides lexicon and sentences.")


class WordsSection(Section):
    """Sentences without a text, for measurements: as many words as `tokenizer.vocab_size` says, as
    frequent as in a natural text (Zipf's law by rank). Nothing can be learned from them, so there
    is nothing to validate on.
    """

    sentences: PositiveInt = Field(20_000, description="Training sentence pairs.")
    length: int = Field(31, gt=0, le=10**9, description="Words of each sentence, without its end.")
    seed: Annotated[Seed, EXPERT] = Field(1, description="Decides the sentences.")


class DataSection(Section):
    """The corpora and how they are prepared."""

    uri: Annotated[str, Paths, NO_RESULT] = Field(
        "${run.uri}/data", min_length=1, description="Folder or URL of the prepared data."
    )
    synthetic: SyntheticSection | None = Field(
        None, description="Generate the corpora instead of reading train, validation and test."
    )
    inflected: InflectedSection | None = Field(
        None, description="Or generate these, with over a million words on each side."
    )
    words: Annotated[WordsSection | None, Later(None), EXPERT] = Field(
        None, description="Or these, of a vocabulary of any size, to measure with: no text is read."
    )
    train: CorpusSection | None = Field(None, description="Training pairs.")
    validation: CorpusSection | None = Field(
        None, description="Pairs for validation loss and BLEU."
    )
    test: CorpusSection | None = Field(None, description="Held-out pairs for `evaluate`.")
    max_sentences: Annotated[NonNegativeInt, EXPERT] = Field(
        0, description="Only so many training pairs, the first ones; 0: all."
    )
    max_tokens: Annotated[int, Field(gt=1, le=10**9)] = Field(
        256, description="Longest sentence of a training pair, in tokens of either side."
    )
    too_long: Annotated[Literal["drop", "cut"], EXPERT] = Field(
        "drop", description="What happens to longer training pairs; both are counted."
    )
    # As by Moses' `clean-corpus-n.perl`.
    max_length_ratio: Annotated[
        Annotated[float, Field(ge=1, le=10**9, allow_inf_nan=False)] | None, Later(None), EXPERT
    ] = Field(
        None,
        description="Training pairs are left out, and counted, where one side has more than so "
        "many times the other's tokens; null: none.",
    )
    num_processes: Annotated[int, NO_RESULT, EXPERT] = Field(
        0,
        ge=0,
        le=10_000,
        description="Processes that count words and encode, or tasks of a Ray cluster; 0: one per "
        "core of this machine, or fewer where there is less memory than that takes.",
    )
    shard_sentences: Annotated[int, EXPERT] = Field(
        50_000, gt=0, le=10**8, description="Sentence pairs per token shard."
    )
    lexicon_translations: Annotated[int, MAY_CHANGE, NOT_PREPARED, EXPERT] = Field(
        0,
        ge=0,
        le=10_000,
        description="Translations per source word in a lexicon learned from the training pairs, "
        "for `search`; 0: no lexicon.",
    )


class TokenizerSection(Section):
    """How text becomes tokens."""

    kind: Kind = Field(
        "word", description="`word`: every word its own id; `bpe`, `unigram`: learned pieces."
    )
    vocab_size: Annotated[int, Field(gt=4, le=MOST_OF_ANYTHING)] = Field(
        10_000, description="Upper bound of the vocabulary, with its four special tokens."
    )
    min_count: PositiveInt = Field(
        1, description="`word`, `bpe`: rarer words or pairs are left out."
    )
    shared: bool = Field(True, description="One vocabulary for both sides, or one for each.")
    oov_buckets: Annotated[NonNegativeInt, EXPERT] = Field(
        0,
        description="`word`: rows that source words outside the vocabulary are hashed to; 0: all "
        "of them are one word.",
    )
    # Prepared data have these two, and tokenizers, which are compared themselves: a run may go on
    # with data that are brought to the same in another way.
    pieces: Annotated[Pieces, MAY_CHANGE, Later("none"), EXPERT] = Field(
        "none",
        description="`word`: what the text has been cut into already. The pieces with their marks "
        "(▁, @@) are the tokens; translations, and what they are scored with, are put together "
        "again.",
    )
    normalize: Annotated[Literal["auto", Form], MAY_CHANGE, EXPERT] = Field(
        "auto",
        description="What all text is brought to. `nfc`: Unicode's composed letters, and one space "
        "for blanks of any kind and number; `nfkc`: ligatures, full-width and other such letters "
        "as plain ones too; `none`: it stays as it is. `auto`: as the prepared data have it, or "
        "the run where data are prepared again, and else `nfc`.",
    )
    lowercase: bool = Field(False, description="Lowercase all text before anything else.")
    split_punctuation: bool = Field(
        True, description="`word`: make punctuation marks tokens; false for tokenised text."
    )

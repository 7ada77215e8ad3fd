"""Settings of a file of vectors, and of how rows start from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_embed.section import EXPERT, Later, MaybeNo, Paths, Section

# `word2vec` is text with a header, as fastText's .vec is too.
Format = Literal[
    "word2vec", "word2vec-bin", "glove", "fasttext-bin", "npy", "safetensors", "parquet", "tsv"
]
# What holds numbers alone, and its words in a list beside it.
WITHOUT_WORDS: tuple[Format, ...] = ("npy", "safetensors", "tsv")
Likeness = Literal["lowercase", "nfc", "digits", "hashes"]
Missing = Literal["random", "mean", "subword"]
Project = Literal["no", "pca", "random"]


class PretrainedSection(Section):
    """Vectors that a table's rows start from, where a run starts from scratch."""

    uri: Annotated[str, Paths] = Field(
        min_length=1,
        description="The file: a path or URL, may be compressed; in an archive "
        "`zip://NAME::ARCHIVE`.",
    )
    format: Literal["auto", Format] = Field(
        "auto",
        description="`word2vec`: text with a header, fastText's .vec too; `glove`: text without. "
        "`tsv`: lines of numbers alone. `auto` looks at the first bytes.",
    )
    words: Annotated[str | None, Paths] = Field(
        None,
        min_length=1,
        description="`npy`, `safetensors`, `tsv`: the file with the rows' words, one a line.",
    )
    tensor: Annotated[str | None, EXPERT] = Field(
        None, description="`safetensors`: which tensor, where it holds more than one matrix."
    )
    prefix: Annotated[str, Later(""), EXPERT] = Field(
        "",
        description="What the file's words of interest begin with, such as ConceptNet's `/c/en/`; "
        "they count without it, and others are passed over.",
    )
    match: Annotated[list[Likeness], EXPERT] = Field(
        [],
        description="What is done to a word of the vocabulary, one after the other, until the file "
        "has it: `lowercase`; `nfc`, Unicode's composed form; `digits`, each becomes 0; `hashes`, "
        "each becomes #, where two stand together.",
    )
    missing: Missing = Field(
        "random",
        description="What words outside the file start from: `random` values spread as the vectors "
        "found, their `mean`, or the `subword` vectors of a binary fastText model.",
    )
    project: Annotated[Project, MaybeNo, EXPERT] = Field(
        "no",
        description="How vectors of another width than `embedding.width` are brought to it. `no`: "
        "zeros widen them, which keeps all cosines, and wider ones are refused.",
    )
    rescale: Annotated[bool, EXPERT] = Field(
        False,
        description="Multiply all rows by one number, so that their values are as large as those "
        "of fresh rows.",
    )
    min_coverage: Annotated[float, Field(ge=0, le=1), EXPERT] = Field(
        0.0,
        description="Least share of the running words of the table's side that must be found.",
    )

"""What a study's file holds, and its page of keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dist_embed.config.reference import keys_page
from dist_embed.section import Paths, PositiveInt, Section, Seed, Width, Workers
from dist_embed.study.results import columns_table

Measure = Literal[
    "validation_perplexity", "bleu", "chrf", "gap", "parameters", "tokens_per_second",
    "sentences_per_second", "epochs", "best_step", "steps_to_reference",
]  # fmt: skip
# What each measure is, for the page, and how it is written.
MEASURES: dict[Measure, tuple[str, str]] = {
    "validation_perplexity": ("validation perplexity", "{:.2f}"),
    "bleu": ("test BLEU", "{:.2f}"),
    "chrf": ("test chrF", "{:.2f}"),
    "gap": ("train–validation gap", "{:.3f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "tokens_per_second": ("target tokens/s", "{:,.0f}"),
    "sentences_per_second": ("sentence pairs/s", "{:,.0f}"),
    "epochs": ("epochs", "{:.1f}"),
    "best_step": ("best step", "{:,.0f}"),
    "steps_to_reference": ("steps to reference", "{:,.0f}"),
}


class Level(Section):
    """One choice of a factor."""

    name: str = Field(min_length=1, description="As the page calls it.")
    set: dict[str, Any] = Field(
        {}, description="Keys of the configuration, dotted, and values; `{study}`: its folder."
    )
    x: Annotated[float, Field(ge=-1e12, le=1e12)] | None = Field(
        None, description="Its place on the plot's axis; levels without stand side by side."
    )


class Factor(Section):
    """What the runs differ in."""

    name: str = Field(min_length=1, description="As the page calls it.")
    levels: list[Level] = Field(min_length=1, description="The choices.")


class WordVectors(Section):
    """word2vec vectors that gensim trains before the runs, from one side of a text."""

    text: Annotated[str | list[str], Paths] = Field(
        description="File or files of one sentence a line, tokens by spaces; path or URL."
    )
    output: Annotated[str, Paths] = Field(
        min_length=1, description="The file, below the study's folder."
    )
    width: Width = Field(description="Values per word.")
    epochs: PositiveInt = Field(5, description="Passes over the text.")
    window: PositiveInt = Field(5, description="Words on either side.")
    min_count: PositiveInt = Field(2, description="Rarer words get no vector.")
    seed: Seed = Field(1, description="With one thread the vectors are reproducible.")


class Expectation(Section):
    """What the field expects; the page says whether it held here."""

    text: str = Field(min_length=1, description="In words, with the source.")
    measure: Measure = Field(description="What is compared.")
    better: dict[str, str] = Field(description="Factor to level: what should do better.")
    worse: dict[str, str] = Field(description="Factor to level: than what.")
    held: bool = Field(True, description="false: it is expected not to do better.")


class Plot(Section):
    """The figure: a measure over one factor, a line for each level of another."""

    x: str = Field(description="The factor along the axis: all or none of its levels have `x`.")
    label: str = Field(description="What the axis says.")
    logarithmic: bool = Field(False, description="Whether the axis is; levels need `x` then.")
    measure: Measure = Field(description="What is drawn upwards.")
    lines: str | None = Field(None, description="The factor that has a line for each level.")


class Reference(Section):
    """Whose best validation loss others are to reach, for `steps_to_reference`."""

    factor: str = Field(description="In which factor.")
    level: str = Field(description="The level; the aim is the best loss of its worst seed.")


class _Study(Section):
    title: str = Field(min_length=1, description="Of the page.")
    question: str = Field(min_length=1, description="What it is about.")
    folder: Annotated[str, Paths] = Field(
        min_length=1, description="Where runs and results lie; a path or URL."
    )
    base: Annotated[str, Paths] = Field(
        min_length=1, description="The configuration; a path or URL."
    )
    machine: str | None = Field(
        None,
        description="The machine that runs are planned for, a name or file as of "
        "`dist-embed plan`; without one, this machine, where it is the one that trains.",
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="One run for each; it takes five to tell two to six expectations from chance, "
        "four for one."
    )
    set: dict[str, Any] = Field({}, description="Keys of the configuration for all runs.")


class TrainingStudy(_Study):
    """Runs of one configuration that differ in some keys, several seeds each."""

    kind: Literal["training"] = Field("training", description="What kind of study it is.")
    factors: list[Factor] = Field(min_length=1, description="All combinations are trained.")
    word_vectors: list[WordVectors] = Field([], description="Made before the runs.")
    measures: list[Measure] = Field(min_length=1, description="Columns of the table.")
    reference: Reference | None = Field(None, description="For `steps_to_reference`.")
    plot: Plot | None = Field(None, description="The figure.")
    expectations: list[Expectation] = Field([], description="What should come out.")


Scaling = Literal["strong", "weak"]
# Names of a grid's factors, and which keys they set.
GRID_KEYS: dict[str, tuple[str, ...]] = {
    "workers": ("cluster.num_workers",),
    "vocabulary": ("tokenizer.vocab_size",),
    "width": ("embedding.width", "model.width"),
    "batch": ("train.batch_tokens",),
    "output": ("model.output",),
}
SCALING = "scaling"  # the factor beside these


class Grid(Section):
    """All combinations are run. What is not given stays as the configuration has it."""

    workers: list[Workers] = Field([], description="`cluster.num_workers`.")
    vocabulary: list[PositiveInt] = Field([], description="`tokenizer.vocab_size`.")
    width: list[Width] = Field(
        [], description="`embedding.width` and `model.width`, of vectors and of the model."
    )
    batch: list[PositiveInt] = Field(
        [], description="`train.batch_tokens`, of the fewest workers where `scaling` is weak."
    )
    output: list[Literal["exact", "sampled"]] = Field([], description="`model.output`.")


class Simulation(Section):
    """Sizes that no run is made of: steps, traffic and checkpoints as they are planned."""

    workers: Annotated[list[Workers], Field(min_length=1)] = Field(
        description="How many, each for every other level of the grid."
    )
    machine: str = Field(
        min_length=1, description="Name or file of the machine, as of `dist-embed plan`."
    )
    tokens_per_worker: PositiveInt | None = Field(
        None,
        description="With weak scaling `train.batch_tokens` for each worker; null: it grows from "
        "the fewest workers of the grid, as that of runs.",
    )
    set: dict[str, Any] = Field({}, description="Keys of the configuration besides.")


class ScalingStudy(_Study):
    """Runs of one configuration on more workers, or of other sizes: their speed and memory."""

    kind: Literal["scaling"] = Field(description="What kind of study it is.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field([1], description="One run for each.")
    grid: Grid = Field(description="What the runs differ in.")
    scaling: Annotated[list[Scaling], Field(min_length=1)] = Field(
        ["strong"],
        description="With more workers `strong`: the same batch; `weak`: one that grows with them.",
    )
    simulate: Simulation | None = Field(None, description="Sizes beyond this machine.")

    @property
    def factors(self) -> list[Factor]:
        """The grid as the factors of a study, workers first, then the kind of scaling."""
        found = []
        for name, keys in GRID_KEYS.items():
            given = getattr(self.grid, name)
            levels = [Level(name=f"{v}", set=dict.fromkeys(keys, v), x=_place(v)) for v in given]
            found += [Factor(name=name, levels=levels)] if given else []
        if self.grid.workers:
            kinds = [Level(name=kind) for kind in self.scaling]
            found.insert(1, Factor(name=SCALING, levels=kinds))
        return found


def _place(value: int | str) -> float | None:
    return float(value) if isinstance(value, int) else None


Study = TrainingStudy | ScalingStudy
STUDIES: dict[str, type[TrainingStudy] | type[ScalingStudy]] = {
    "training": TrainingStudy, "scaling": ScalingStudy,
}  # fmt: skip

_KEYS_HEAD = """\
# Keys of a study's file

This page is written by `dist-embed config reference --study`. Relative paths in the file are
relative to the folder in which the command is called. Where a table names no largest value of a
number, it is 10¹². First the keys of a comparison
(`kind: training`), then those [of scaling](#of-scaling), then
[the columns of results.parquet](#columns-of-resultsparquet).
"""
_SCALING_HEAD = """\
## Of scaling

The file of a study with `kind: scaling`.
"""
_COLUMNS_HEAD = """\
## Columns of results.parquet

A row for each run of a study of any kind, in its folder; and for each size that is simulated.
"""


def study_keys_page() -> str:
    """docs/studies/keys.md: all keys of a study's file, in Markdown."""
    parts = [keys_page(_KEYS_HEAD, TrainingStudy), keys_page(_SCALING_HEAD, ScalingStudy),
             f"{_COLUMNS_HEAD}\n{columns_table()}"]  # fmt: skip
    return "\n".join(parts)

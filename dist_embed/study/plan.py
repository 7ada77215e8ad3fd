"""What a study file says: which runs differ in what, and what is asked of them."""

from __future__ import annotations

import difflib
import posixpath
from itertools import product
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from dist_embed.config.errors import ConfigError
from dist_embed.config.reference import keys_page
from dist_embed.config.schema import PositiveInt, Section
from dist_embed.storage import uri as storage

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
    x: float | None = Field(
        None, description="Its place on the plot's axis; levels without stand side by side."
    )


class Factor(Section):
    """What the runs differ in."""

    name: str = Field(min_length=1, description="As the page calls it.")
    levels: list[Level] = Field(min_length=1, description="The choices.")


class WordVectors(Section):
    """word2vec vectors that gensim trains before the runs, from one side of a text."""

    text: str | list[str] = Field(
        description="File or files of one sentence a line, tokens by spaces; path or URL."
    )
    output: str = Field(min_length=1, description="The file, below the study's folder.")
    width: PositiveInt = Field(description="Values per word.")
    epochs: PositiveInt = Field(5, description="Passes over the text.")
    window: PositiveInt = Field(5, description="Words on either side.")
    min_count: PositiveInt = Field(2, description="Rarer words get no vector.")
    seed: int = Field(1, ge=0, description="With one thread the vectors are reproducible.")


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


class TrainingStudy(Section):
    """Runs of one configuration that differ in some keys, several seeds each."""

    kind: Literal["training"] = Field("training", description="What kind of study it is.")
    title: str = Field(min_length=1, description="Of the page.")
    question: str = Field(min_length=1, description="What it is about.")
    folder: str = Field(min_length=1, description="Where runs and results lie; a path or URL.")
    base: str = Field(
        min_length=1, description="The configuration; a path is relative to the study's file."
    )
    seeds: Annotated[list[int], Field(min_length=1)] = Field(
        description="One run for each; with fewer than three nothing can be told from chance."
    )
    set: dict[str, Any] = Field({}, description="Keys of the configuration for all runs.")
    factors: list[Factor] = Field(min_length=1, description="All combinations are trained.")
    word_vectors: list[WordVectors] = Field([], description="Made before the runs.")
    measures: list[Measure] = Field(min_length=1, description="Columns of the table.")
    reference: Reference | None = Field(None, description="For `steps_to_reference`.")
    plot: Plot | None = Field(None, description="The figure.")
    expectations: list[Expectation] = Field([], description="What should come out.")


class OneHotStudy(Section):
    """The same first layer as one-hot vectors times a matrix, and as a lookup."""

    kind: Literal["one_hot"] = Field(description="What kind of study it is.")
    title: str = Field(min_length=1, description="Of the page.")
    question: str = Field(min_length=1, description="What it is about.")
    folder: str = Field(min_length=1, description="Where results lie.")
    words: list[PositiveInt] = Field(min_length=1, description="Sizes of the vocabulary.")
    width: PositiveInt = Field(128, description="Values per word.")
    tokens: PositiveInt = Field(4096, description="Words of a batch.")
    rounds: PositiveInt = Field(5, description="Times that each is measured.")


Study = TrainingStudy | OneHotStudy


class Combination(dict[str, str]):
    """Factor to level, in the study's order."""

    @property
    def key(self) -> str:
        """A name for folders."""
        return "_".join(
            "".join(c if c.isalnum() else "-" for c in level).strip("-").lower()
            for level in self.values()
        )


def load_study(path: str) -> Study:
    """Read and check a study's file. Raises ConfigError."""
    try:
        loaded = OmegaConf.create(storage.read_text(path))
        values: Any = OmegaConf.to_container(loaded, resolve=True)  # ${oc.env:NAME}
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, AssertionError) as exc:
        # OmegaConf asserts that it is given no bare number.
        reason = str(exc).split("\n")[0] or "expected a mapping"
        raise ConfigError(f"cannot read study {path!r}: {reason}") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping")
    kinds: dict[str, type[TrainingStudy] | type[OneHotStudy]] = {
        "training": TrainingStudy, "one_hot": OneHotStudy,
    }  # fmt: skip
    kind = values.get("kind", "training")
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{path}: kind: {kind!r} is not allowed: {', '.join(kinds)}{hint}")
    try:
        study = kinds[kind].model_validate(values)
    except ValidationError as exc:
        raise ConfigError("\n".join(_explain(error, path) for error in exc.errors())) from None
    if isinstance(study, TrainingStudy):
        study = study.model_copy(update={"base": _beside(path, study.base)})
        _check(study, path)
    return study


def combinations(study: TrainingStudy) -> list[Combination]:
    """All of them, the last factor changing fastest."""
    names = [factor.name for factor in study.factors]
    levels = [[level.name for level in factor.levels] for factor in study.factors]
    return [Combination(zip(names, chosen, strict=True)) for chosen in product(*levels)]


def level_of(study: TrainingStudy, factor: str, level: str) -> Level:
    """One level by its names."""
    found = next(f for f in study.factors if f.name == factor)
    return next(one for one in found.levels if one.name == level)


_KEYS_HEAD = """\
# Keys of a study's file

Of a study that trains. `kind: one_hot` has keys of its own, at the end. This page is written by
`dist-embed config reference --study`.
"""


def study_keys_page() -> str:
    """docs/studies/keys.md: all keys of a study's file, in Markdown."""
    one_hot = "## `kind: one_hot`\n\n" + str(OneHotStudy.__doc__) + "\n"
    return keys_page(_KEYS_HEAD, TrainingStudy) + "\n" + keys_page(one_hot, OneHotStudy)


def overrides_of(study: TrainingStudy, combination: Combination) -> dict[str, Any]:
    """The keys that the runs of a combination set."""
    merged = dict(study.set)
    for factor, level in combination.items():
        merged |= level_of(study, factor, level).set
    return merged


def _explain(error: Any, path: str) -> str:
    where = f"{path}: {'.'.join(map(str, error['loc']))}"
    if error["type"] == "missing":
        return f"{where}: missing"
    return (
        f"{where}: {error['input']!r} is not allowed: {error['msg'][0].lower()}{error['msg'][1:]}"
    )


def _beside(path: str, base: str) -> str:
    if "://" in base or base.startswith("/"):
        return base
    protocol, sign, rest = path.rpartition("://")
    return protocol + sign + posixpath.normpath(posixpath.join(posixpath.dirname(rest), base))


def _check(study: TrainingStudy, path: str) -> None:
    """Names that refer to nothing. Raises ConfigError."""
    levels = {f.name: {level.name for level in f.levels} for f in study.factors}
    problems = []
    if len(levels) < len(study.factors):
        problems.append("two factors have one name")
    if len(set(study.seeds)) < len(study.seeds):
        problems.append(f"seeds: {study.seeds} has one twice")
    for factor in study.factors:
        if len(levels[factor.name]) < len(factor.levels):
            problems.append(f"factor {factor.name!r} has two levels of one name")
    keys = [combination.key for combination in combinations(study)]
    problems += [f"two combinations are both called {k!r}" for k in set(keys) if keys.count(k) > 1]
    named: list[tuple[str, dict[str, str]]] = []
    for number, expected in enumerate(study.expectations):
        for side, chosen in (("better", expected.better), ("worse", expected.worse)):
            named.append((f"expectations.{number}.{side}", chosen))
            missing = levels.keys() - chosen.keys()
            if missing:
                problems.append(f"expectations.{number}.{side}: no level of {', '.join(missing)}")
    if study.reference:
        named.append(("reference", {study.reference.factor: study.reference.level}))
    else:
        used = [("measures", measure) for measure in study.measures]
        used += [("plot.measure", study.plot.measure)] if study.plot else []
        used += [(f"expectations.{i}.measure", e.measure) for i, e in enumerate(study.expectations)]
        problems += [
            f"{where}: steps_to_reference needs `reference`"
            for where, measure in used
            if measure == "steps_to_reference"
        ]
    for where, chosen in named:
        for factor_name, level_name in chosen.items():
            if level_name not in levels.get(factor_name, set()):
                problems.append(f"{where}: there is no {factor_name!r} {level_name!r}")
    if study.plot:
        drawn = [study.plot.x, *([study.plot.lines] if study.plot.lines else [])]
        for name in drawn:
            if name not in levels:
                problems.append(f"plot: there is no factor {name!r}")
        others = [name for name in levels if name not in drawn and len(levels[name]) > 1]
        problems += [f"plot: factor {name!r} is neither `x` nor `lines`" for name in others]
        along = next((f for f in study.factors if f.name == study.plot.x), None)
        without = [level.name for level in along.levels if level.x is None] if along else []
        if along and without and (study.plot.logarithmic or len(without) < len(along.levels)):
            problems.append(f"plot: {without[0]!r} of {study.plot.x!r} needs `x`")
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))

"""Which runs a study's file asks for: read, checked, and combined."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from fractions import Fraction
from itertools import product
from os import PathLike
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from dist_embed.config.written import mapping_in
from dist_embed.errors import ConfigError, UserError
from dist_embed.mistakes import mistakes
from dist_embed.storage import uri as storage
from dist_embed.streams import say
from dist_embed.study.schema import (
    GRID_KEYS,
    SCALING,
    STUDIES,
    Level,
    ScalingStudy,
    Study,
    TrainingStudy,
)


class Combination(dict[str, str]):
    """Factor to level, in the study's order."""

    @property
    def key(self) -> str:
        """A name for folders."""
        return "_".join(map(_in_key, self.values()))


def _in_key(level: str) -> str:
    """Without underscores, which stand between levels: keys differ where one of these does."""
    return "".join(c if c.isalnum() else "-" for c in level).strip("-").lower()


def load_study(path: str | PathLike[str]) -> Study:
    """Read and check a study's file. Raises UserError."""
    path = storage.given(path, "study")
    try:
        text = storage.read_given_text(path)
    except (OSError, UserError, ValueError) as exc:
        said = str(exc).split("\n")[0] or type(exc).__name__
        raise ConfigError(f"cannot read study {path!r}: {said}") from exc
    loaded = mapping_in(text, path)
    try:
        values: Any = OmegaConf.to_container(loaded, resolve=True)  # ${oc.env:NAME}
    except OmegaConfBaseException as exc:
        reason = str(exc).split("\n")[0]
        raise ConfigError(f"{path}: {reason}") from exc
    if values.get("kind") == "one_hot":
        raise ConfigError(f"{path}: kind: one_hot is a measurement now: dist-embed bench one-hot")
    kind = values.get("kind", "training")
    if not isinstance(kind, str) or kind not in STUDIES:
        raise ConfigError(f"{path}: kind: {kind!r} is not allowed: {' or '.join(STUDIES)}")
    form = STUDIES[kind]
    try:
        study: Study = form.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(mistakes(exc, form, path, "docs/studies/keys.md")) from None
    study = study.model_copy(update={"base": _base(path, study.base)})
    problems = _problems(study) if isinstance(study, TrainingStudy) else _grid_problems(study)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def combinations(study: Study) -> list[Combination]:
    """All of them, the last factor changing fastest."""
    names = [factor.name for factor in study.factors]
    levels = [[level.name for level in factor.levels] for factor in study.factors]
    return [Combination(zip(names, chosen, strict=True)) for chosen in product(*levels)]


def number_of_runs(study: Study) -> int:
    """How many a study has, without making them up."""
    return len(study.seeds) * math.prod(len(factor.levels) for factor in study.factors)


def levels_of(study: Study, factor: str) -> list[Level]:
    """The levels of a factor, by its name."""
    return next(found.levels for found in study.factors if found.name == factor)


def overrides_of(study: Study, combination: Combination) -> dict[str, Any]:
    """The keys that the runs of a combination set; of a grid's weak scaling all but the batch."""
    merged = dict(study.set)
    for factor, level in combination.items():
        merged |= next(one.set for one in levels_of(study, factor) if one.name == level)
    return merged


def growth(study: Study, combination: Combination, workers: int | None = None) -> int | Fraction:
    """How many times the batch of the fewest workers a run has: 1 but for weak scaling.

    ``workers``: instead of those of the combination.
    """
    if not isinstance(study, ScalingStudy) or combination.get(SCALING) != "weak":
        return 1
    there = int(combination["workers"]) if workers is None else workers
    return Fraction(there, min(study.grid.workers))


def _base(path: str, base: str) -> str:
    """Where the base lies: seen from the caller, as all paths of files are.

    Earlier versions looked beside the study's file; one that lies there alone is taken, and that is
    said. Raises ConfigError where both are there, and are two files.
    """
    if "://" in base or base.startswith("/"):
        return base
    protocol, sign, rest = path.rpartition("://")
    beside = protocol + sign + posixpath.normpath(posixpath.join(posixpath.dirname(rest), base))
    if storage.absolute(beside) == storage.absolute(base) or not storage.exists(beside):
        return base
    if storage.exists(base):
        raise ConfigError(
            f"{path}: base: {base!r} is both {storage.absolute(base)} and, seen from the study's "
            f"file, {storage.absolute(beside)}: give a full path"
        )
    say(
        f"{path}: base: {base!r} is read beside the study's file; paths are relative to the folder "
        "in which the command is called"
    )
    return beside


def _grid_problems(study: ScalingStudy) -> list[str]:
    """What contradicts itself in a study of scaling."""
    problems = []
    lists = {f"grid.{name}": getattr(study.grid, name) for name in GRID_KEYS}
    lists |= {"seeds": study.seeds, "scaling": study.scaling}
    lists |= {"simulate.workers": study.simulate.workers} if study.simulate else {}
    for name, given in lists.items():
        if len(set(given)) < len(given):
            problems.append(f"{name}: {given} has one twice")
    if not study.factors:
        problems.append(f"grid: empty; give one of {', '.join(GRID_KEYS)}")
    if "weak" in study.scaling and not study.grid.workers:
        problems.append("scaling: 'weak' is not allowed without grid.workers")
    if study.simulate and not study.grid.workers:
        problems.append("simulate: not allowed without grid.workers, which it goes on")
    if study.simulate and study.simulate.tokens_per_worker and "weak" not in study.scaling:
        problems.append("simulate.tokens_per_worker: not allowed without scaling: [weak]")
    simulated = study.simulate.set if study.simulate else {}
    own = ("run.uri", "run.seed", "data.uri")
    for where, keys, decided in (
        ("set", study.set, own),
        ("simulate.set", simulated, (*own, "cluster.device")),  # the machine's
    ):
        for name, of_grid in GRID_KEYS.items():
            if getattr(study.grid, name):
                problems += [
                    f"{where}.{key}: not allowed beside grid.{name}, which sets it"
                    for key in of_grid
                    if key in keys
                ]
        problems += [
            f"{where}.{key}: not allowed: the study sets it" for key in decided if key in keys
        ]
    return problems


def _problems(study: TrainingStudy) -> list[str]:
    """Names that refer to nothing."""
    levels = {f.name: {level.name for level in f.levels} for f in study.factors}
    problems = []
    if len(levels) < len(study.factors):
        problems.append("two factors have one name")
    if len(set(study.seeds)) < len(study.seeds):
        problems.append(f"seeds: {study.seeds} has one twice")
    for factor in study.factors:
        if len(levels[factor.name]) < len(factor.levels):
            problems.append(f"factor {factor.name!r} has two levels of one name")
        called = Counter(map(_in_key, levels[factor.name]))
        problems += [
            f"factor {factor.name!r} has two levels that are both {name!r} in names of folders"
            for name, times in called.items()
            if times > 1
        ]
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
    return problems

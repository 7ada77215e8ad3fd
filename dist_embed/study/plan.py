"""Which runs a study's file asks for: read, checked, and combined."""

from __future__ import annotations

import posixpath
from itertools import product
from os import PathLike
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from dist_embed.errors import ConfigError, UserError
from dist_embed.mistakes import mistakes
from dist_embed.storage import uri as storage
from dist_embed.streams import say
from dist_embed.study.schema import Level, TrainingStudy


class Combination(dict[str, str]):
    """Factor to level, in the study's order."""

    @property
    def key(self) -> str:
        """A name for folders."""
        return "_".join(
            "".join(c if c.isalnum() else "-" for c in level).strip("-").lower()
            for level in self.values()
        )


def load_study(path: str | PathLike[str]) -> TrainingStudy:
    """Read and check a study's file. Raises UserError."""
    path = storage.given(path, "study")
    try:
        loaded = OmegaConf.create(storage.read_text(path))
        values: Any = OmegaConf.to_container(loaded, resolve=True)  # ${oc.env:NAME}
    except (OSError, UserError, ValueError, yaml.YAMLError, OmegaConfBaseException,
            AssertionError) as exc:  # fmt: skip
        # OmegaConf asserts that it is given no bare number.
        reason = str(exc).split("\n")[0] or "expected a mapping"
        raise ConfigError(f"cannot read study {path!r}: {reason}") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping")
    if values.get("kind") == "one_hot":
        raise ConfigError(f"{path}: kind: one_hot is a measurement now: dist-embed bench one-hot")
    try:
        study = TrainingStudy.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(mistakes(exc, TrainingStudy, path, "docs/studies/keys.md")) from None
    study = study.model_copy(update={"base": _base(path, study.base)})
    _check(study, path)
    return study


def combinations(study: TrainingStudy) -> list[Combination]:
    """All of them, the last factor changing fastest."""
    names = [factor.name for factor in study.factors]
    levels = [[level.name for level in factor.levels] for factor in study.factors]
    return [Combination(zip(names, chosen, strict=True)) for chosen in product(*levels)]


def levels_of(study: TrainingStudy, factor: str) -> list[Level]:
    """The levels of a factor, by its name."""
    return next(found.levels for found in study.factors if found.name == factor)


def overrides_of(study: TrainingStudy, combination: Combination) -> dict[str, Any]:
    """The keys that the runs of a combination set."""
    merged = dict(study.set)
    for factor, level in combination.items():
        merged |= next(one.set for one in levels_of(study, factor) if one.name == level)
    return merged


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

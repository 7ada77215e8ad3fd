"""A run's course, read from its metrics: one row per validation, and where its steps' time went."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeAlias

from dist_embed.observe.phase_names import PHASES, PhaseName, metric_of
from dist_embed.run.metrics import figure

# A log line of a run's metrics, and how many steps it is about.
Logged: TypeAlias = tuple[Mapping[str, Any], int]
REST = "rest"
# A step's own clock starts behind these.
OUTSIDE: tuple[PhaseName, ...] = ("agreement", "checkpoint stall")


@dataclass(frozen=True)
class Validated:
    """Where a run stood at one validation.

    Attributes:
        step: optimizer steps done.
        epoch: whole passes over the training data.
        step_minutes: time spent in steps so far.
        wall_minutes: time since the run's first step, validations, saving and pauses included.
        tokens_per_second: median over the log lines since the row before.
        perplexity: of the validation set.
        bleu: of the validation set, where it was translated.
        scored_by: how that was computed; None: by a version that did not say.
    """

    step: int
    epoch: int
    step_minutes: float
    wall_minutes: float
    tokens_per_second: float
    perplexity: float
    bleu: float | None
    scored_by: str | None = None


def course_of(lines: list[dict[str, Any]]) -> list[Validated]:
    """One row per validation, from the lines of ``metrics.jsonl``."""
    rows: list[Validated] = []
    seconds, last_step, epoch = 0.0, 0, 0
    speeds: list[float] = []
    began: float | None = None
    for line in lines:
        spent, perplexity = figure(line, "step_seconds"), figure(line, "validation_perplexity")
        time = figure(line, "time")
        if began is None and time is not None:  # the first line is written after its steps
            began = time - (spent or 0.0) * line["step"]
        if spent is not None:
            seconds += spent * (line["step"] - last_step)
            last_step, epoch = line["step"], int(figure(line, "epoch") or 0)
            if (speed := figure(line, "tokens_per_second")) is not None:
                speeds.append(speed)
        elif perplexity is not None:
            rows.append(
                Validated(
                    line["step"],
                    epoch,
                    seconds / 60,
                    math.nan if time is None or began is None else (time - began) / 60,
                    median(speeds) if speeds else math.nan,
                    perplexity,
                    None,
                )
            )
            speeds = []
        elif "validation_bleu" in line and rows and rows[-1].step == line["step"]:
            rows[-1] = replace(
                rows[-1], bleu=figure(line, "validation_bleu"), scored_by=line.get("scored_by")
            )
    return rows


def ways_of_scoring(rows: list[Validated]) -> list[str]:
    """What is to be said of how BLEU was computed; nothing where none was."""
    by = {row.step: row.scored_by for row in rows if row.bleu is not None}
    if len(set(by.values())) < 2:
        return [f"BLEU is {way}" for way in {*by.values()} - {None}]
    said = ["BLEU was computed in different ways, which cannot be compared:"]
    before: str | None = ""
    for step, way in by.items():
        if way != before:
            said.append(f"from step {step:,}: {way or 'as an earlier version did'}")
        before = way
    return said


def with_steps(lines: Iterable[Mapping[str, Any]]) -> list[Logged]:
    """The log lines among a run's metrics, each with how many steps it is about. Where a run has
    resumed that is what the line says, or in those of earlier versions, which did not say it, too
    many.
    """
    before, found = 0, []
    for line in lines:
        if figure(line, "step_seconds") is not None:
            found.append((line, int(figure(line, "steps") or line["step"] - before)))
            before = line["step"]
    return found


def phases_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Those of all lines of a run's metrics, see `mean_phases`."""
    return mean_phases(with_steps(lines))


def mean_phases(logged: Iterable[Logged]) -> dict[str, float]:
    """Seconds a step of each phase on worker 0, the mean over all steps, in a step's order; last
    `REST`, what of a step is in no phase. Empty where no line has any.
    """
    told = [(line, count) for line, count in logged if metric_of(PHASES[0]) in line and count > 0]
    if not told:
        return {}
    steps = sum(count for _, count in told)
    sums: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    names = [(name, metric_of(name)) for name in PHASES]
    for line, _ in told:  # line by line: of 100,000 each would be far away from the one before
        for name, metric in names:
            sums[name] += figure(line, metric) or 0.0
    found = {name: seconds / steps for name, seconds in sums.items()}
    whole = sum(line["step_seconds"] * count for line, count in told) / steps
    inside = sum(seconds for name, seconds in found.items() if name not in OUTSIDE)
    return found | {REST: max(0.0, whole - inside)}

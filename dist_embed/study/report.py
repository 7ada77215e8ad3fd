"""A study's page: what was asked, what was run, a table, a plot, and whether expectations held."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dist_embed.observe.plot import GREY, INK, label_ends, log_axis, plot_into
from dist_embed.study.plan import (
    MEASURES,
    Combination,
    Measure,
    TrainingStudy,
    combinations,
    level_of,
)
from dist_embed.study.run import Outcome

LOWER_IS_BETTER: tuple[Measure, ...] = (
    "validation_perplexity", "gap", "parameters", "best_step", "steps_to_reference",
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A measure over the seeds of a combination.

    Attributes:
        values: one for each seed that has one.
        lacking: seeds that have none, as runs that never reached the reference.
    """

    values: list[float]
    lacking: int = 0

    @property
    def mean(self) -> float:
        """NaN without values."""
        return mean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """The sample's standard deviation; NaN for fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else math.nan

    def text(self, form: str) -> str:
        """Mean ± spread."""
        if not self.values:
            return "never"
        told = form.format(self.mean)
        if len(self.values) > 1 and self.spread:
            told += f" ± {form.format(self.spread)}"
        return told + (f" ({self.lacking} never)" if self.lacking else "")


def summaries(
    study: TrainingStudy, outcomes: Sequence[Outcome]
) -> dict[str, dict[Measure, Summary]]:
    """By combination's key each of the study's measures."""
    found: dict[str, dict[Measure, Summary]] = {}
    for combination in combinations(study):
        own = [outcome for outcome in outcomes if outcome.levels == combination]
        found[combination.key] = {
            measure: _steps_to_reference(study, combination, own, outcomes)
            if measure == "steps_to_reference"
            else Summary([outcome.measures[measure] for outcome in own])
            for measure in MEASURES
            if measure != "steps_to_reference" or study.reference
        }
    return found


def _steps_to_reference(
    study: TrainingStudy,
    combination: Combination,
    own: Sequence[Outcome],
    outcomes: Sequence[Outcome],
) -> Summary:
    """Steps of the first validation at or below the mean best loss of the reference's seeds."""
    assert study.reference is not None
    levels = {**combination, study.reference.factor: study.reference.level}
    best = [min(loss for _, loss in o.validations) for o in outcomes if o.levels == levels]
    aim = mean(best)
    reached = [
        next((step for step, loss in outcome.validations if loss <= aim), None) for outcome in own
    ]
    steps = [float(step) for step in reached if step is not None]
    return Summary(steps, len(reached) - len(steps))


def study_page(
    study: TrainingStudy,
    outcomes: Sequence[Outcome],
    *,
    command: str,
    machine: dict[str, Any],
    plot_name: str | None,
) -> str:
    """The page in Markdown."""
    found = summaries(study, outcomes)
    parts = [
        f"# {study.title}\n",
        study.question.strip() + "\n",
        f"```bash\n{command}\n```\n",
        _set_up(study),
        _table(study, found),
    ]
    if study.reference:
        parts.append(
            f"*Steps to reference*: until the validation loss is at or below the mean best loss of "
            f"{study.reference.factor} “{study.reference.level}” in the same row group.\n"
        )
    if plot_name and study.plot:
        parts.append(f"![{MEASURES[study.plot.measure][0]}]({plot_name})\n")
    if study.expectations:
        parts.append("## What was expected\n\n" + "\n".join(_judged(study, found)) + "\n")
    parts.append(made_on(machine))
    return "\n".join(parts)


def _set_up(study: TrainingStudy) -> str:
    same = ", ".join(f"`{key}={_plain(value)}`" for key, value in study.set.items())
    lines = [
        f"Every run is `{Path(study.base).name}`" + (f" with {same}" if same else "") + ".",
        f"{len(study.seeds)} seeds for each row: mean ± standard deviation over seeds. "
        "The checkpoint with the lowest validation loss is scored.",
        "",
    ]
    for vectors in study.word_vectors:
        files = [vectors.text] if isinstance(vectors.text, str) else vectors.text
        names = ", ".join(f"`{Path(file).name}`" for file in files)
        lines += [
            f"`{vectors.output}`: word2vec (skip-gram, gensim) of {names}, width {vectors.width}, "
            f"{vectors.epochs} epochs, window {vectors.window}, minimum count {vectors.min_count}.",
            "",
        ]
    for factor in study.factors:
        lines.append(f"| {factor.name} | what it sets |\n| --- | --- |")
        for level in factor.levels:
            keys = ", ".join(f"`{key}={_plain(value)}`" for key, value in level.set.items())
            lines.append(f"| {level.name} | {keys or 'nothing'} |")
        lines.append("")
    return "\n".join(lines)


def _table(study: TrainingStudy, found: dict[str, dict[Measure, Summary]]) -> str:
    names = [factor.name for factor in study.factors]
    header = [*names, *(MEASURES[measure][0] for measure in study.measures)]
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + " --- |" * len(names) + " ---: |" * len(study.measures))
    for combination in combinations(study):
        cells = [found[combination.key][m].text(MEASURES[m][1]) for m in study.measures]
        lines.append("| " + " | ".join([*combination.values(), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _judged(study: TrainingStudy, found: dict[str, dict[Measure, Summary]]) -> list[str]:
    """Each expectation with what was found; the difference is told from chance by the spreads."""
    lines = []
    for expected in study.expectations:
        name, form = MEASURES[expected.measure]
        better, worse = (
            found[Combination({f.name: levels[f.name] for f in study.factors}).key][
                expected.measure
            ]
            for levels in (expected.better, expected.worse)
        )
        gain = better.mean - worse.mean
        if expected.measure in LOWER_IS_BETTER:
            gain = -gain
        noise = math.hypot(*(0.0 if math.isnan(s.spread) else s.spread for s in (better, worse)))
        verdict = "no difference beyond the spread of the seeds"
        if math.isnan(gain):
            verdict = "cannot be said: a value is missing"
        elif gain > noise:
            verdict = "**holds here**"
        elif gain < -noise:
            verdict = "**the opposite was found here**"
        lines.append(
            f"- {expected.text.strip()} — {verdict}: {name} {better.text(form)} "
            f"({_named(expected.better)}) against {worse.text(form)} ({_named(expected.worse)})."
        )
    return lines


def _named(levels: dict[str, str]) -> str:
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


def draw_study(study: TrainingStudy, outcomes: Sequence[Outcome], path: str) -> None:
    """The plot of the study: a mean and a bar of one standard deviation at each place.

    Raises UserError for a file that cannot be drawn.
    """
    assert study.plot is not None
    plot, found = study.plot, summaries(study, outcomes)
    along = next(f for f in study.factors if f.name == plot.x)
    lines = [None] if plot.lines is None else [
        level.name for f in study.factors if f.name == plot.lines for level in f.levels
    ]  # fmt: skip
    with plot_into(path) as axes:
        places = [level.x for level in along.levels if level.x is not None]
        if plot.logarithmic:
            log_axis(axes, "x", places)
        else:
            axes.set_xticks(places)
        ends = []
        markers = ("o", "s", "^", "D", "v")
        for number, line in enumerate(lines):
            own = [c for c in combinations(study) if line is None or c[plot.lines or ""] == line]
            points = [
                (level_of(study, plot.x, c[plot.x]).x or 0.0, found[c.key][plot.measure])
                for c in own
            ]
            x = [place for place, _ in points]
            y = [summary.mean for _, summary in points]
            bars = [0.0 if math.isnan(s.spread) else s.spread for _, s in points]
            axes.errorbar(
                x, y, yerr=bars, color=INK if number == 0 else GREY,
                marker=markers[number % len(markers)], capsize=2, elinewidth=0.6,
                linestyle=("-", "--", ":", "-.")[number % 4],
            )  # fmt: skip
            ends.append((y[-1], "" if line is None else line))
        axes.set_xlabel(plot.label)
        axes.set_title(MEASURES[plot.measure][0])
        label_ends(axes, max(places), [(y, text) for y, text in ends if not math.isnan(y)])


def command_of(arguments: Sequence[str]) -> str:
    """How a user gives the command."""
    return "bash launch/run.sh " + shlex.join(arguments)


def made_on(machine: dict[str, Any]) -> str:
    """Machine and versions, for the end of a page."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Written by the command above. Machine: {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB, {machine['device']}; {versions}. Speeds of single runs "
        "share the machine with whatever else it did; compare them with care.\n"
    )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

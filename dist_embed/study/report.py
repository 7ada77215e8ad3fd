"""A study's page: what was asked, what was run, a table, a plot, and whether expectations held."""

from __future__ import annotations

import itertools
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
    Expectation,
    Measure,
    TrainingStudy,
    combinations,
)
from dist_embed.study.run import TRAINING_TOKENS, Outcome

LOWER_IS_BETTER: tuple[Measure, ...] = (
    "validation_perplexity", "gap", "parameters", "epochs", "best_step", "steps_to_reference",
)  # fmt: skip
# A verdict is given where chance would bring as clear an order of the seeds this seldom.
_CHANCE = 0.05


@dataclass(frozen=True)
class Summary:
    """A measure over the seeds of a combination.

    Attributes:
        values: one for each seed; infinite for a run that never reached the reference.
    """

    values: list[float]

    @property
    def finite(self) -> list[float]:
        """Those that are."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> float:
        """Of the finite values; NaN without any."""
        return mean(self.finite) if self.finite else math.nan

    @property
    def spread(self) -> float:
        """The sample's standard deviation; NaN for fewer than two finite values."""
        return stdev(self.finite) if len(self.finite) > 1 else math.nan

    def text(self, form: str) -> str:
        """Mean ± spread, and how many are not in it."""
        never = sum(map(math.isinf, self.values))
        if not self.finite:
            return "never" if never else "no value"
        told = form.format(self.mean)
        if len(self.finite) > 1 and self.spread:
            told += f" ± {form.format(self.spread)}"
        return told + (f" ({never} of {len(self.values)} never)" if never else "")


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
    """Steps of the first validation at or below the aim: the best loss of the reference's worst
    seed, so that every seed of it has reached that.
    """
    assert study.reference is not None
    levels = {**combination, study.reference.factor: study.reference.level}
    best = [min((loss for _, loss in o.validations), default=math.nan)
            for o in outcomes if o.levels == levels]  # fmt: skip
    aim = math.nan if any(map(math.isnan, best)) else max(best)
    return Summary(
        [
            next((float(step) for step, loss in outcome.validations if loss <= aim), math.inf)
            for outcome in own
        ]
    )


def chance(better: Sequence[float], worse: Sequence[float]) -> float:
    """How probable so clear an order is if both sides are alike: a permutation test, one-sided.

    The statistic is Mann and Whitney's (1947): pairs in which the value of ``better`` is the
    higher one, an equal pair half. It needs no distribution, and infinite values are as good as
    others. With three values on each side at least 1/20.
    """

    def won(side: Sequence[float], other: Sequence[float]) -> float:
        return sum((a > b) + (a == b) / 2 for a in side for b in other)

    together = [*better, *worse]
    if any(map(math.isnan, together)):
        return math.nan
    there = won(better, worse)
    everyone = set(range(len(together)))
    splits = [
        won([together[i] for i in side], [together[i] for i in everyone - set(side)])
        for side in itertools.combinations(range(len(together)), len(better))
    ]
    return sum(count >= there for count in splits) / len(splits)


def study_page(
    study: TrainingStudy,
    outcomes: Sequence[Outcome],
    *,
    command: str,
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
    parts += _notes(study)
    if plot_name and study.plot:
        parts.append(f"![{MEASURES[study.plot.measure][0]}]({plot_name})\n")
    if study.expectations:
        judged = [_judged(study, expected, found) for expected in study.expectations]
        parts += ["## What was expected\n", _RULE, "\n".join(judged) + "\n"]
    parts.append(made_on([outcome.machine for outcome in outcomes]))
    return "\n".join(parts)


_RULE = (
    "A difference counts where chance would order the seeds of both sides as clearly in at most "
    "one of twenty cases (permutation test, one-sided); with three seeds that is where all of one "
    "side are better than all of the other.\n"
)


def _notes(study: TrainingStudy) -> list[str]:
    """What some columns are."""
    notes = []
    if "gap" in study.measures:
        notes.append(
            "*Train–validation gap*: validation loss less the loss of "
            f"{TRAINING_TOKENS:,} tokens of the training data, of the same checkpoint, both "
            "without dropout.\n"
        )
    if study.reference:
        notes.append(
            f"*Steps to reference*: until the validation loss is at or below the best one of the "
            f"worst seed of {study.reference.factor} “{study.reference.level}” in the same rows.\n"
        )
    return notes


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


def _judged(
    study: TrainingStudy, expected: Expectation, found: dict[str, dict[Measure, Summary]]
) -> str:
    """An expectation with what was found."""
    name, form = MEASURES[expected.measure]
    better, worse = (
        found[Combination({f.name: levels[f.name] for f in study.factors}).key][expected.measure]
        for levels in (expected.better, expected.worse)
    )
    high, low = better.values, worse.values
    if expected.measure in LOWER_IS_BETTER:
        high, low = [-value for value in high], [-value for value in low]
    verdict = verdict_of(high, low, held=expected.held)
    return (
        f"- {expected.text.strip()} — {verdict}: {name} {better.text(form)} "
        f"({_named(expected.better)}) against {worse.text(form)} ({_named(expected.worse)})."
    )


def verdict_of(better: Sequence[float], worse: Sequence[float], *, held: bool) -> str:
    """Whether ``better`` (higher values are better ones) is so, as expected or not (``held``)."""
    for_it, against_it = chance(better, worse), chance(worse, better)
    if math.isnan(for_it):
        return "cannot be told: a value is missing"
    if for_it <= _CHANCE:
        return "**holds here**" if held else "**does not hold here**"
    if against_it <= _CHANCE:
        return "**the opposite was found here**" if held else "**holds here**"
    return "no difference that these seeds could tell from chance"


def _named(levels: dict[str, str]) -> str:
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


def draw_study(study: TrainingStudy, outcomes: Sequence[Outcome], path: str) -> None:
    """The plot of the study: a mean and a bar of one standard deviation at each place.

    Raises UserError for a file that cannot be drawn.
    """
    assert study.plot is not None
    plot, found = study.plot, summaries(study, outcomes)
    along = next(f for f in study.factors if f.name == plot.x)
    # Without places the levels stand side by side, and no line leads from one to the next.
    by_name = all(level.x is None for level in along.levels)
    place_of = {
        level.name: float(number) if level.x is None else level.x
        for number, level in enumerate(along.levels)
    }
    lines = [None] if plot.lines is None else [
        level.name for f in study.factors if f.name == plot.lines for level in f.levels
    ]  # fmt: skip
    with plot_into(path) as axes:
        places = list(place_of.values())
        if by_name:
            axes.set_xticks(places, list(place_of))
            axes.margins(x=0.15)
        elif plot.logarithmic:
            log_axis(axes, "x", places)
        else:
            axes.set_xticks(places)
        ends = []
        markers = ("o", "s", "^", "D", "v")
        for number, line in enumerate(lines):
            own = [c for c in combinations(study) if line is None or c[plot.lines or ""] == line]
            points = [(place_of[c[plot.x]], found[c.key][plot.measure]) for c in own]
            x = [place for place, _ in points]
            y = [summary.mean for _, summary in points]
            bars = [0.0 if math.isnan(s.spread) else s.spread for _, s in points]
            axes.errorbar(
                x, y, yerr=bars, color=INK if number == 0 else GREY,
                marker=markers[number % len(markers)], capsize=2, elinewidth=0.6,
                linestyle="" if by_name else ("-", "--", ":", "-.")[number % 4],
            )  # fmt: skip
            ends.append((y[x.index(max(x))], "" if line is None else line))
        axes.set_xlabel(plot.label)
        axes.set_title(MEASURES[plot.measure][0])
        label_ends(axes, max(places), [(y, text) for y, text in ends if not math.isnan(y)])


def command_of(arguments: Sequence[str]) -> str:
    """How a user gives the command."""
    return "bash launch/run.sh " + shlex.join(arguments)


def made_on(machines: Sequence[dict[str, Any]]) -> str:
    """Machines and versions of the measurements, for the end of a page."""
    told: list[str] = []
    for machine in machines:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        line = (
            f"{machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['device']}; "
            f"{versions}"
        )
        if line not in told:
            told.append(line)
    return (
        f"Written by the command above. Measured on: {'; and on: '.join(told)}. Speeds share the "
        "machine with whatever else it did; compare them with care.\n"
    )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

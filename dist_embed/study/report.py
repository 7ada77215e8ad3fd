"""A study's page: what was asked, what was run, a table, a plot, and whether expectations held."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_embed.study.outcome import Outcome
from dist_embed.study.plan import Combination, combinations
from dist_embed.study.schema import MEASURES, Expectation, Measure, Study, TrainingStudy
from dist_embed.study.scored import TRAINING_TOKENS
from dist_embed.study.summary import (
    LOWER_IS_BETTER,
    Comparison,
    Summary,
    least_p,
    seeds_that_tell,
    summaries,
    verdicts,
)


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
        _set_up(study, some_left_out=bool(left_out(study, outcomes))),
        _table(study, found),
    ]
    parts += _notes(study)
    if plot_name and study.plot:
        parts.append(f"![{MEASURES[study.plot.measure][0]}]({plot_name})\n")
    if study.expectations:
        parts += ["## What was expected\n", _rule(study), _judged(study, found)]
    parts += not_made(outcomes)
    parts.append(made_on([outcome.machine for outcome in outcomes]))
    return "\n".join(parts)


def not_made(outcomes: Sequence[Outcome]) -> list[str]:
    """The runs of which there are no figures, and why: a part of the page, where there are any."""
    told = [outcome.lacks for outcome in outcomes if outcome.lacks]
    return ["## Without figures\n", *(f"- {line}" for line in told), ""] if told else []


def _rule(study: TrainingStudy) -> str:
    """By which test a difference counts; decision 21 says why."""
    number = len(study.expectations)
    these = f"the {number} expectations" if number > 1 else "the one expectation"
    said = too_few_seeds(study)
    return (
        "A difference counts where a permutation test (Mann and Whitney's statistic, two-sided) "
        f"gives p ≤ 0.05, by Holm's correction for {these} of this page: where both sides are "
        "alike in everything, at most one such page in twenty has any verdict."
        + (f" {said}\n" if said else "\n")
    )


def too_few_seeds(study: TrainingStudy) -> str | None:
    """That no verdict is possible with the study's seeds, and with how many; None where it is."""
    seeds, number = len(study.seeds), len(study.expectations)
    needed = seeds_that_tell(number)
    if not number or seeds >= needed:
        return None
    some = f"{seeds} seeds cannot" if seeds > 1 else "One seed cannot"
    p = least_p(seeds)
    return (
        f"{some} tell any difference from chance here: where all of one side are better than all "
        f"of the other p is {p:.2g}, after the correction {min(1.0, p * number):.2g}. "
        f"{needed} seeds could."
    )


def left_out(study: TrainingStudy, outcomes: Sequence[Outcome]) -> list[str]:
    """Of which seeds the page lacks which figure, a line each."""
    found = summaries(study, outcomes)
    used = [*study.measures, *(expected.measure for expected in study.expectations)]
    used += [study.plot.measure] if study.plot else []
    return [
        f"{', '.join(combination.values())}: {MEASURES[measure][0]}: {left}"
        for combination in combinations(study)
        for measure in dict.fromkeys(used)
        if (left := found[combination.key][measure].left_out)
    ]


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


def _set_up(study: TrainingStudy, *, some_left_out: bool) -> str:
    lines = [
        f"Every run is {set_up_of(study)}.",
        f"{len(study.seeds)} seeds for each row: mean ± standard deviation over seeds"
        + (", without those that are told beside a figure" if some_left_out else "")
        + ". The checkpoint with the lowest validation loss is scored.",
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


def set_up_of(study: Study) -> str:
    """The configuration of a study, and what all its runs set."""
    same = ", ".join(f"`{key}={_plain(value)}`" for key, value in study.set.items())
    return f"`{Path(study.base).name}`" + (f" with {same}" if same else "")


def _table(study: TrainingStudy, found: dict[str, dict[Measure, Summary]]) -> str:
    names = [factor.name for factor in study.factors]
    header = [*names, *(MEASURES[measure][0] for measure in study.measures)]
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + " --- |" * len(names) + " ---: |" * len(study.measures))
    for combination in combinations(study):
        cells = [found[combination.key][m].text(MEASURES[m][1]) for m in study.measures]
        lines.append("| " + " | ".join([*combination.values(), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _judged(study: TrainingStudy, found: dict[str, dict[Measure, Summary]]) -> str:
    """The expectations with what was found."""

    def sides(expected: Expectation) -> list[Summary]:
        return [
            found[Combination({f.name: side[f.name] for f in study.factors}).key][expected.measure]
            for side in (expected.better, expected.worse)
        ]

    compared = []
    for expected in study.expectations:
        sign = -1 if expected.measure in LOWER_IS_BETTER else 1
        better, worse = ([sign * value for value in side.values] for side in sides(expected))
        compared.append(Comparison(better, worse, expected.held, _alike(study, expected)))
    lines = []
    for expected, verdict in zip(study.expectations, verdicts(compared), strict=True):
        name, form = MEASURES[expected.measure]
        better_text, worse_text = (side.text(form) for side in sides(expected))
        lines.append(
            f"- {expected.text.strip()} — {verdict}: {name} {better_text} "
            f"({_named(expected.better)}) against {worse_text} ({_named(expected.worse)}).\n"
        )
    return "".join(lines)


def _alike(study: TrainingStudy, expected: Expectation) -> bool:
    reference = study.reference
    if reference is None or expected.measure != "steps_to_reference":
        return True
    own = [side[reference.factor] == reference.level for side in (expected.better, expected.worse)]
    return own[0] == own[1]


def _named(levels: dict[str, str]) -> str:
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


def command_of(arguments: Sequence[str]) -> str:
    """How a user gives the command."""
    return "bash launch/run.sh " + shlex.join(arguments)


def made_on(machines: Sequence[dict[str, Any]]) -> str:
    """Machines and versions of the measurements, for the end of a page."""
    told: list[str] = []
    for machine in filter(None, machines):
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        line = (
            f"{machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['device']}; "
            f"{versions}"
        )
        if line not in told:
            told.append(line)
    if not told:
        return "Written by the command above. No run has figures.\n"
    return (
        f"Written by the command above. Measured on: {'; and on: '.join(told)}. Speeds share the "
        "machine with whatever else it did; compare them with care.\n"
    )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

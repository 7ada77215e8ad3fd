"""What a study's runs came to: means over seeds, and whether an expectation held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from dist_embed.study.plan import Combination, combinations
from dist_embed.study.run import Outcome
from dist_embed.study.schema import MEASURES, Measure, TrainingStudy

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
    def deviation(self) -> float:
        """The sample's standard deviation; NaN for fewer than two finite values."""
        return stdev(self.finite) if len(self.finite) > 1 else math.nan

    def text(self, form: str) -> str:
        """Mean ± deviation, and how many are not in it."""
        never = sum(map(math.isinf, self.values))
        if not self.finite:
            return "never" if never else "no value"
        told = form.format(self.mean)
        if len(self.finite) > 1 and self.deviation:
            told += f" ± {form.format(self.deviation)}"
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

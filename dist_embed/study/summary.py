"""What a study's runs came to: means over seeds, and whether an expectation held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from dist_embed.installed import require
from dist_embed.study.outcome import Outcome
from dist_embed.study.plan import Combination, combinations
from dist_embed.study.schema import MEASURES, Measure, TrainingStudy

LOWER_IS_BETTER: tuple[Measure, ...] = (
    "validation_perplexity", "gap", "parameters", "epochs", "best_step", "steps_to_reference",
)  # fmt: skip
# How often a page may have any verdict where nothing differs.
_LEVEL = 0.05
# Of the values of both sides: up to so many ways to split them are all looked at.
_SPLITS = 20_000


@dataclass(frozen=True)
class Summary:
    """A measure over the seeds of a combination.

    Attributes:
        values: one for each seed; infinite for a run that never reached the reference, NaN where
            there is none.
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

    @property
    def left_out(self) -> str:
        """In words, how many are not finite; empty where all are."""
        kinds = (
            (sum(map(math.isinf, self.values)), "never", "never"),
            (sum(map(math.isnan, self.values)), "missing", "no value"),
        )
        return ", ".join(
            every if count == len(self.values) else f"{count} of {len(self.values)} {some}"
            for count, some, every in kinds
            if count
        )

    def text(self, form: str) -> str:
        """Mean ± deviation, and how many are not in it."""
        if not self.finite:
            return self.left_out or "no value"
        told = form.format(self.mean)
        if len(self.finite) > 1 and self.deviation:
            told += f" ± {form.format(self.deviation)}"
        return told + (f" ({self.left_out})" if self.left_out else "")


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
            else Summary([outcome.measures.get(measure, math.nan) for outcome in own])
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
    seed, so that every seed of it has reached that. NaN for a run that was not validated, and
    where the reference was not.
    """
    assert study.reference is not None
    levels = {**combination, study.reference.factor: study.reference.level}
    best = [min((loss for _, loss in o.validations if math.isfinite(loss)), default=math.nan)
            for o in outcomes if o.levels == levels]  # fmt: skip
    aim = math.nan if any(map(math.isnan, best)) else max(best)
    return Summary(
        [
            next((float(step) for step, loss in outcome.validations if loss <= aim), math.inf)
            if outcome.validations and not math.isnan(aim)
            else math.nan
            for outcome in own
        ]
    )


def p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """How probable so clear an order is, of either side, if both are alike: a permutation test.

    The statistic is Mann and Whitney's (1947), here as the sum of one side's ranks; equal values
    share theirs. It needs no distribution, and infinite values are as good as others. Exact where
    there are at most ``_SPLITS`` ways to split the values (8 a side); beyond that from as many
    random ones, always the same. NaN where a value is missing.
    """
    require("scipy")
    from scipy.stats import permutation_test, rankdata

    if any(map(math.isnan, [*one, *other])):
        return math.nan
    if min(len(one), len(other)) < 2:
        return 1.0  # least_p of one seed a side; scipy wants two
    ranks = rankdata([*one, *other])
    result = permutation_test(
        (ranks[: len(one)], ranks[len(one) :]),
        lambda own, others, axis: own.sum(axis=axis),
        vectorized=True, n_resamples=_SPLITS, rng=0,
    )  # fmt: skip
    return float(result.pvalue)


def least_p(seeds: int) -> float:
    """The p-value where every seed of one side is better than every seed of the other."""
    return 2 / math.comb(2 * seeds, seeds)


def seeds_that_tell(expectations: int) -> int:
    """The fewest seeds a side with which any of so many expectations could get a verdict."""
    return next(n for n in itertools.count(1) if least_p(n) * expectations <= _LEVEL)


def corrected(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) p-values for several tests at once; one that is NaN counts, and stays so."""
    found = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for before, (p, place) in enumerate(known):
        found[place] = largest = max(largest, min(1.0, p * (len(p_values) - before)))
    return found


@dataclass(frozen=True)
class Comparison:
    """The values of an expectation, one for each seed; higher ones are better.

    Attributes:
        better: of what should do better.
        worse: than these.
        held: false: it is expected not to.
        alike: whether chance treats both sides alike. It does not where one side's own seeds set
            the aim that both are measured by: they reach it by construction.
    """

    better: Sequence[float]
    worse: Sequence[float]
    held: bool = True
    alike: bool = True


def verdicts(compared: Sequence[Comparison]) -> list[str]:
    """Whether the expectations of a page held, all tested together at 5 %: see decision 21."""
    p_values = [p_value(one.better, one.worse) if one.alike else math.nan for one in compared]
    judged = zip(compared, p_values, corrected(p_values), strict=True)
    return [_verdict(one, p, own, len(compared)) for one, p, own in judged]


def _verdict(one: Comparison, p: float, holm: float, expectations: int) -> str:
    if not one.alike:
        return "cannot be told: the seeds of one side set the aim"
    if math.isnan(p):
        return "cannot be told: a value is missing"
    seeds = len(one.better)
    if seeds < seeds_that_tell(expectations):
        told = f"cannot be told with {seeds} seed{'s' if seeds > 1 else ''}"
    elif holm > _LEVEL:
        told = "no difference that these seeds could tell from chance"
    elif sum((a > b) - (a < b) for a in one.better for b in one.worse) > 0:
        told = "**holds here**" if one.held else "**does not hold here**"
    else:
        told = "**the opposite was found here**" if one.held else "**holds here**"
    return f"{told} (p = {p:.2g}, corrected {holm:.2g})"

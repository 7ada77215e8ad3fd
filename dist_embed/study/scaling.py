"""How well runs scale, and sizes beyond the machine, which are simulated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning import Machine, load_machine, plan
from dist_embed.planning.estimate import step_of
from dist_embed.planning.seconds import StepTime
from dist_embed.planning.step import Step
from dist_embed.planning.text import text_of
from dist_embed.storage import uri as storage
from dist_embed.study.estimate import planned_columns
from dist_embed.study.plan import Combination, combinations, growth, overrides_of
from dist_embed.study.results import described
from dist_embed.study.schema import ScalingStudy

Row = dict[str, Any]
_EFFICIENCIES = {
    "efficiency": "tokens_per_second", "planned_efficiency": "planned_tokens_per_second",
}  # fmt: skip


def set_efficiencies(rows: Sequence[Row]) -> None:
    """Set ``efficiency`` and ``planned_efficiency``: speed for each core, or GPU, by that of the
    fewest workers with all other levels and the seed alike, which are ``efficiency_base``: of runs
    those that were measured, of simulated sizes those that fit. Other rows have none.

    With more threads than cores there is none: such a run measures how they take turns.
    """
    fewest: dict[Any, Row] = {}
    for row in rows:
        row |= dict.fromkeys(("efficiency_base", *_EFFICIENCIES))
    for row in sorted(filter(_counts, rows), key=lambda row: row["workers"]):
        base = fewest.setdefault(_alike(row), row)
        row["efficiency_base"] = base["workers"]
        for name, speed in _EFFICIENCIES.items():
            if row.get(speed) and base.get(speed):
                row[name] = _for_each(row, speed) / _for_each(base, speed)


def _counts(row: Row) -> bool:
    if row["state"] == "simulated":
        return row["planned_fits"] is not False
    measured = row["state"] == "done" and row.get("tokens_per_second")
    return bool(measured and not row.get("oversubscribed"))


def _alike(row: Row) -> Any:
    levels = {name: level for name, level in row["levels"].items() if name != "workers"}
    return (row["state"], row.get("seed"), tuple(sorted(levels.items())))


def _for_each(row: Row, speed: str) -> float:
    return float(row[speed]) / (row["workers"] * (row.get("threads_per_worker") or 1))


def simulated_rows(study: ScalingStudy) -> list[Row]:
    """What is planned for each of the simulated sizes, in the rows of a result.

    Words are by Zipf's law. A step waits for the worker that is asked for most rows, where they
    lie as `RowOrder` places them: that much longer are its exchanges of rows.

    Raises UserError: no such machine, a configuration that cannot be, or more workers than rows.
    """
    if study.simulate is None:
        return []
    machine, found = load_machine(study.simulate.machine), []
    for combination in _without_workers(study):
        config = _config(study, combination, machine)  # which takes longer than a plan
        found += [
            _simulated(study, combination, config, workers, machine)
            for workers in study.simulate.workers
        ]
    return found


def _without_workers(study: ScalingStudy) -> Iterator[Combination]:
    """The grid's levels but for the number of workers, once each, with the fewest of them."""
    fewest = str(min(study.grid.workers))
    yield from (one for one in combinations(study) if one["workers"] == fewest)


def _simulated(
    study: ScalingStudy, combination: Combination, config: Config, workers: int, machine: Machine
) -> Row:
    config = grown(config, growth(study, combination, workers))
    found = plan(config, workers, machine)
    step = step_of(config, workers, machine, text_of(config))
    extra = extra_seconds(step, found.request_balance)
    seconds = found.step_seconds + sum(extra.values())
    waiting = replace(
        found, step_seconds=seconds,
        phases={name: of + extra.get(name, 0.0) for name, of in found.phases.items()},
        tokens_per_second=found.tokens_per_second * found.step_seconds / seconds,
    )  # fmt: skip
    levels = Combination({**combination, "workers": str(workers)})
    return {
        **described(config, levels, workers), "threads_per_worker": None, "state": "simulated",
        "planned_fits": found.fits, **planned_columns(waiting), "plan": json.dumps(found.as_dict()),
    }  # fmt: skip


def extra_seconds(step: Step, balance: float) -> dict[PhaseName, float]:
    """By how much phases are longer where one worker is asked for so many times the mean of rows:
    until it has read, sent and updated them. All else is as it was.
    """
    served = StepTime(step).seconds_of_asked_rows()
    return {name: (balance - 1.0) * seconds for name, seconds in served.items()}


@dataclass(frozen=True)
class Breaks:
    """What a simulated size is limited by, and what each remedy would give.

    Attributes:
        row: of the result.
        remedies: a change, and how many times as fast a step is with it; where the size does not
            fit, whether it would.
    """

    row: Row
    remedies: list[str]


def what_breaks(simulated: Sequence[Row]) -> list[Breaks]:
    """Of the most simulated workers, for each other level."""
    most = max(row["workers"] for row in simulated)
    return [
        Breaks(row, _remedies(json.loads(row["plan"])))
        for row in simulated
        if row["workers"] == most
    ]


def _remedies(found: dict[str, Any]) -> list[str]:
    """Of a `Plan` as plain values."""
    if found["fits"]:
        before = found["tokens_per_second"]
        return [
            f"`{one['change']}`: {one['tokens_per_second'] / before:.2f} times the tokens/s"
            for one in found["remedies"]
        ]
    return [
        f"`{one['change']}`: {one['memory_bytes'] / 2**30:,.1f} GiB a worker, "
        f"{'fits' if one['fits'] else 'still too much'}"
        for one in found["remedies"]
    ]


def _config(study: ScalingStudy, combination: Combination, machine: Machine) -> Config:
    """Of any number of workers, before its batch has grown with them."""
    assert study.simulate is not None
    nowhere = storage.join(study.folder, "simulated")
    keys = overrides_of(study, combination) | study.simulate.set | {
        "run.uri": nowhere, "data.uri": nowhere, "cluster.device": machine.device,
    }  # fmt: skip
    return load_config(
        study.base,
        [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()],
    )


def grown(config: Config, times: Any) -> Config:
    """With a batch that is so many times as large; see `growth`."""
    if times == 1:
        return config
    tokens = max(1, round(config.train.batch_tokens * times))
    return config.model_copy(
        update={"train": config.train.model_copy(update={"batch_tokens": tokens})}
    )

"""How well runs scale, and sizes beyond the machine, which are simulated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.planning import Machine, Plan, load_machine, plan
from dist_embed.planning.efficiency import Size, efficiencies
from dist_embed.planning.page import given, given_by_speed, pressures
from dist_embed.storage import uri as storage
from dist_embed.study.estimate import planned_columns
from dist_embed.study.plan import Combination, combinations, growth, overrides_of
from dist_embed.study.results import described
from dist_embed.study.schema import SCALING, ScalingStudy

Row = dict[str, Any]
_EFFICIENCIES = {
    "efficiency": "tokens_per_second", "planned_efficiency": "planned_tokens_per_second",
}  # fmt: skip


def set_efficiencies(rows: Sequence[Row]) -> None:
    """Set ``efficiency`` and ``planned_efficiency`` of rows with all other levels and the seed
    alike, see `efficiencies`, and ``efficiency_base``, the number of workers that they are by: of
    runs those that were measured count, of simulated sizes those that fit. Other rows have none.
    """
    alike: dict[Any, list[Row]] = {}
    for row in rows:
        alike.setdefault(_alike(row), []).append(row)
    for some in alike.values():
        counts = [_counts(row) for row in some]
        for name, speed in _EFFICIENCIES.items():
            base, found = efficiencies(
                [
                    Size(row["workers"], row.get("threads_per_worker") or 1, row.get(speed), each)
                    for row, each in zip(some, counts, strict=True)
                ]
            )
            for row, each, efficiency in zip(some, counts, found, strict=True):
                row |= {"efficiency_base": base if each else None, name: efficiency}


def _counts(row: Row) -> bool:
    if row.get("oversubscribed"):
        return False
    if row["state"] == "simulated":
        return row["planned_fits"] is not False
    return bool(row["state"] == "done" and row.get("tokens_per_second"))


def _alike(row: Row) -> Any:
    levels = {name: level for name, level in row["levels"].items() if name != "workers"}
    return (row["state"] == "simulated", row.get("seed"), tuple(sorted(levels.items())))


def simulated_rows(study: ScalingStudy) -> list[Row]:
    """What is planned for each of the simulated sizes, in the rows of a result.

    Words are by Zipf's law.

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
    assert study.simulate is not None
    each = study.simulate.tokens_per_worker
    if each and combination[SCALING] == "weak":
        config = _with_batch(config, each * workers)
    else:
        config = grown(config, growth(study, combination, workers))
    found = plan(config, workers, machine)
    levels = Combination({**combination, "workers": str(workers)})
    return {
        **described(config, levels, workers), "state": "simulated", "seed": None,
        "threads_per_worker": found.threads if machine.device == "cpu" else None,
        "oversubscribed": found.oversubscribed,
        "planned_fits": found.fits, **planned_columns(found),
    }  # fmt: skip


@dataclass(frozen=True)
class Breaks:
    """What a simulated size is limited by, and what each remedy would give.

    Attributes:
        row: of the result.
        remedies: a change, and how long a step is with it; where the size does not fit, whether it
            would; then what is not built.
        pressures: what grows with the workers, in figures.
    """

    row: Row
    remedies: list[str]
    pressures: list[str]


def what_breaks(simulated: Sequence[Row]) -> list[Breaks]:
    """Of the most simulated workers, for each other level."""
    most = max(row["workers"] for row in simulated)
    found = [(row, plan_of(row)) for row in simulated if row["workers"] == most]
    return [Breaks(row, _remedies(planned), pressures(planned)) for row, planned in found]


def plan_of(row: Row) -> Plan:
    """The whole plan of a row."""
    return Plan.from_dict(json.loads(row["plan"]))


def _remedies(found: Plan) -> list[str]:
    told = [f"`{one.change}`: {given(one, found)}" for one in found.remedies]
    return told + [
        f"not built: {one.change}: {given_by_speed(one, found)}" for one in found.not_built
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
    return _with_batch(config, max(1, round(config.train.batch_tokens * times)))


def _with_batch(config: Config, tokens: int) -> Config:
    return config.model_copy(
        update={"train": config.train.model_copy(update={"batch_tokens": tokens})}
    )

"""What it costs a training step that its phases are recorded."""

from __future__ import annotations

from statistics import median
from typing import Any

from dist_embed.bench.step_profile import built_steps
from dist_embed.bench.tasks import PhaseCost
from dist_embed.bench.workers import meet
from dist_embed.observe.phases import Phases, phase
from dist_embed.parallel.device import device_name
from dist_embed.training.worker import Context
from dist_embed.training.workers import spent_by_workers


def phase_cost_task(context: Context, asked: PhaseCost) -> dict[str, Any]:
    """Time the same steps recorded and not, in turns, with what a run adds: the phases of its loop,
    and the exchange at a log line after each round. Collective.
    """
    group, count = context.group, asked.steps
    step, works = built_steps(context, asked.data_folder, count + 2)
    phases = Phases(group.device)

    def made(place: int) -> None:
        step.run(place + 1, works[place], works[place + 1])

    def recorded(place: int) -> None:
        with phases.recorded():
            with phase("agreement"), phase("checkpoint stall"), phase("data wait"):
                pass
            made(place)

    def seconds(*, on: bool) -> float:
        made(0)
        started = meet(group)
        for place in range(1, count + 1):
            (recorded if on else made)(place)
        if on:
            spent_by_workers(phases.take(), group)
        return (meet(group) - started) / count

    seconds(on=True)  # sizes that are new take longer
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(asked.rounds):
        for on in (True, False) if number % 2 else (False, True):
            found[on].append(seconds(on=on))
    more = [with_ / without - 1 for with_, without in zip(found[True], found[False], strict=True)]
    return {
        "workers": group.num_workers,
        "device": device_name(group.device),
        "steps": count,
        "seconds_recorded": found[True],
        "seconds_not_recorded": found[False],
        "share": median(more),
    }

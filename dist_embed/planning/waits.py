"""A step with what it waits for: the worker that is asked for most rows, its data, checkpoints."""

from __future__ import annotations

from dist_embed.data.pool_sizes import PLANNING_SECONDS
from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning.checkpoint import CheckpointPlan, checkpoint_plan
from dist_embed.planning.cost import Cost
from dist_embed.planning.seconds import StepTime
from dist_embed.planning.step import Step


def costs_with_waits(step: Step) -> tuple[dict[PhaseName, Cost], CheckpointPlan]:
    """By phase; and the checkpoints that training waits for."""
    time = StepTime(step)
    found, more = time.costs(), step.request_balance - 1
    for name, seconds in time.seconds_of_asked_rows().items():
        found[name] += Cost(hot=more * seconds)
    found["data wait"] += Cost(data=_not_planned_yet(step, _all(found)))
    checkpoint = checkpoint_plan(step, _all(found))
    stall = checkpoint.stall_seconds / checkpoint.steps if checkpoint.steps else 0.0
    found["checkpoint stall"] = Cost(stall=stall)
    return found, checkpoint


def _all(costs: dict[PhaseName, Cost]) -> float:
    return sum(cost.seconds for cost in costs.values())


def planning_seconds(step: Step) -> float:
    """Processor time that planning a step's batches takes every worker."""
    return step.pairs * PLANNING_SECONDS / step.parts_of_data


def _not_planned_yet(step: Step, seconds: float) -> float:
    """Every worker plans the batches of all, in a thread of its own: beside a step of so many
    seconds where it has a core for that.
    """
    planning = planning_seconds(step)
    spare = step.cores > step.threads  # with a GPU: one that waits for it
    return max(0.0, planning - seconds) if spare else planning

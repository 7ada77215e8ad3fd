"""What a checkpoint of a run holds, how long one takes, how long training waits for it, and how
often there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.embedding.memory import table_bytes
from dist_embed.planning.step import Step


@dataclass(frozen=True)
class CheckpointPlan:
    """One checkpoint.

    Attributes:
        bytes: of all workers together.
        worker_bytes: that a worker writes.
        seconds: from its step until it counts: all is read to see that it is finite, copied,
            digested and written.
        stall_seconds: of them training waits.
        load_seconds: until a run that goes on has read it.
        due_steps: steps from one that is due to the next; None: there is one at the end alone.
        steps: from one that is made to the next: more where each takes longer than that.
    """

    bytes: int
    worker_bytes: int
    seconds: float
    stall_seconds: float
    load_seconds: float
    due_steps: float | None
    steps: float | None


def checkpoint_plan(step: Step, step_seconds: float) -> CheckpointPlan:
    """Rows and state of all tables, each by its owner, and the dense model with its moments.

    ``step_seconds``: of a step without waiting for any.
    """
    config, machine, workers = step.config, step.machine, step.workers
    own = sum(
        table_bytes(spec, config.embedding.optimizer, workers, config.embedding.weights)
        for spec in step.specs.values()
    )
    dense = 3 * 4 * step.parameters
    of_node = own * machine.workers_of_node(workers) + dense
    store, latency = machine.store, 1e-3 * machine.store.latency_ms
    held = own + dense
    writing = latency + of_node / (1e9 * store.put_gb_s) + held / (1e9 * store.digest_gb_s)
    looking = held / machine.bytes_per_second()
    # From a GPU over its link to the host, within a host read and written.
    copying = (1 if machine.device == "cuda" else 2) * held / machine.host_link()
    behind = config.checkpoint.saving == "behind"
    twice = 2 if config.checkpoint.saving == "in_place" else 1  # first to prove it
    stalls = looking + (copying if behind else writing)
    seconds = looking + writing + (copying if behind else 0.0)
    due = _due_steps(config.checkpoint, step_seconds)
    return CheckpointPlan(
        bytes=own * workers + dense,
        worker_bytes=own,
        seconds=seconds,
        stall_seconds=stalls,
        load_seconds=latency + twice * of_node / (1e9 * store.get_gb_s),
        due_steps=due,
        # One that is due while another is under way is made once that has ended.
        steps=max(due, (seconds - stalls) / step_seconds) if due else None,
    )


def _due_steps(settings: CheckpointSection, seconds: float) -> float | None:
    """By steps or by the clock, which starts anew with each, whichever comes first."""
    by_clock = 60 * settings.every_minutes / seconds
    return min(filter(None, (settings.every_steps, by_clock)), default=None)

"""What a checkpoint of a run holds, how long one takes, and how long training waits for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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
    """

    bytes: int
    worker_bytes: int
    seconds: float
    stall_seconds: float
    load_seconds: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def checkpoint_plan(step: Step) -> CheckpointPlan:
    """Rows and state of all tables, each by its owner, and the dense model with its moments."""
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
    return CheckpointPlan(
        bytes=own * workers + dense,
        worker_bytes=own,
        seconds=looking + writing + (copying if behind else 0.0),
        stall_seconds=looking + (copying if behind else writing),
        load_seconds=latency + twice * of_node / (1e9 * store.get_gb_s),
    )

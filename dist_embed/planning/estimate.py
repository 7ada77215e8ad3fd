"""A run planned from its configuration: memory, traffic, time, balance, checkpoints.

Nothing is allocated and PyTorch is not imported: any size is planned within a second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dist_embed.arguments import whole_number
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning.balance import request_balance, rows_per_worker
from dist_embed.planning.checkpoint import CheckpointPlan, checkpoint_plan
from dist_embed.planning.machine import Machine
from dist_embed.planning.memory import worker_memory
from dist_embed.planning.seconds import Spent, StepTime
from dist_embed.planning.step import Step
from dist_embed.planning.text import Text
from dist_embed.planning.traffic import Network, traffic


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration, and what it gives.

    Attributes:
        change: as an override, or in words.
        memory_bytes: of a worker then, see `Plan`.
        step_seconds: of a step then.
        tokens_per_second: then.
        fits: whether it fits then.
    """

    change: str
    memory_bytes: int
    step_seconds: float
    tokens_per_second: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a run is expected to take.

    Attributes:
        workers: W.
        machine: name of the machine that it is planned for.
        memory: bytes of a worker by part, at the time when it holds most: of its GPU, or of its
            process where it has none.
        host_memory: of its host where it has a GPU; else empty.
        memory_bytes: all of ``memory``.
        host_memory_bytes: all of ``host_memory``.
        fits: whether the machine's memory suffices.
        step_seconds: from one step to the next, with the agreement between them and a share of a
            checkpoint's stall, which a run's own ``step_seconds`` leaves out.
        phases: seconds of a step by the names that a run records.
        spent: seconds of a step by what they are spent on, see `seconds.Spent`.
        traffic: bytes that a worker sends in a step, by what they are.
        links: the same by where they go.
        distinct_rows: that a worker looks up in a step, of all tables.
        rows_per_worker: the fewest and the most rows that a worker holds.
        request_balance: rows that the worker is asked for that is asked for most, by the mean.
        tokens_per_second: target tokens.
        bottleneck: what limits it first, in words.
        remedies: what would change that.
        checkpoint: bytes and seconds of one.
        prepared: whether prepared data were asked; else words are by Zipf's law and at most
            `tokenizer.vocab_size`.
    """

    workers: int
    machine: str
    memory: dict[str, int]
    host_memory: dict[str, int]
    memory_bytes: int
    host_memory_bytes: int
    fits: bool
    step_seconds: float
    phases: dict[PhaseName, float]
    spent: dict[str, float]
    traffic: dict[str, float]
    links: dict[str, float]
    distinct_rows: float
    rows_per_worker: tuple[int, int]
    request_balance: float
    tokens_per_second: float
    bottleneck: str
    remedies: list[Remedy]
    checkpoint: CheckpointPlan
    prepared: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def step_of(config: Config, workers: int, machine: Machine, text: Text) -> Step:
    """A step with so many workers. Raises UserError: there cannot be so many."""
    workers = whole_number("workers", workers, 1)
    cluster = config.cluster.model_copy(update={"num_workers": workers})
    step = Step(config.model_copy(update={"cluster": cluster}), machine, text, workers)
    for spec in step.specs.values():
        if workers > spec.num_rows:
            raise UserError(
                f"workers: {workers} is not allowed: table {spec.name!r} has {spec.num_rows:,} "
                "rows, and each worker holds one at least"
            )
    return step


def estimated(step: Step) -> Plan:
    """A plan without a verdict."""
    memory, checkpoint = worker_memory(step), checkpoint_plan(step)
    spent = StepTime(step).spent()
    phases = {name: one.seconds for name, one in spent.items()}
    every = step.config.checkpoint.every_steps
    phases["checkpoint stall"] = checkpoint.stall_seconds / every if every else 0.0
    seconds = (1 + step.machine.rest) * sum(phases.values())
    sent = traffic(step)
    return Plan(
        workers=step.workers,
        machine=step.machine.name,
        memory=memory.device,
        host_memory=memory.host,
        memory_bytes=memory.device_bytes,
        host_memory_bytes=memory.host_bytes,
        fits=memory.fits,
        step_seconds=seconds,
        phases=phases,
        spent=asdict(sum(spent.values(), Spent())),
        traffic=sent,
        links=Network(step.machine, step.workers).links(sum(sent.values())),
        distinct_rows=sum(step.distinct_rows.values()),
        rows_per_worker=rows_per_worker(step),
        request_balance=request_balance(step),
        tokens_per_second=step.target_tokens / seconds,
        bottleneck="",
        remedies=[],
        checkpoint=checkpoint,
        prepared=step.text.prepared,
    )

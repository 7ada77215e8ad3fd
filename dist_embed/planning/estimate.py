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
from dist_embed.planning.memory import Lacking, worker_memory
from dist_embed.planning.seconds import Spent, StepTime
from dist_embed.planning.step import Step
from dist_embed.planning.text import Text
from dist_embed.planning.traffic import Network, traffic
from dist_embed.training.step_seconds import CPU_THREAD_RATE, GPU_RATE, why_refused


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration, and what it gives.

    Attributes:
        change: as an override, or in words.
        memory_bytes: of a worker then, see `Plan`.
        host_memory_bytes: likewise.
        step_seconds: of a step then.
        tokens_per_second: then.
        fits: whether it fits then.
    """

    change: str
    memory_bytes: int
    host_memory_bytes: int
    step_seconds: float
    tokens_per_second: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a run is expected to take.

    Attributes:
        workers: W.
        machine: name of the machine that it is planned for.
        machine_source: where its figures are from.
        memory: bytes of a worker by part, at the time when it holds most: of its GPU, or of its
            process where it has none.
        host_memory: of its host where it has a GPU; else empty.
        memory_bytes: all of ``memory``.
        host_memory_bytes: all of ``host_memory``.
        lacking: where memory lacks: on a worker's ``device``, see ``memory``, or on its ``host``;
            empty: nowhere.
        refused: why `train` would not start it whatever memory there is; empty: it would.
        fits: whether the machine's memory suffices and `train` would start it.
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
    machine_source: str
    memory: dict[str, int]
    host_memory: dict[str, int]
    memory_bytes: int
    host_memory_bytes: int
    lacking: Lacking
    refused: str
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
    phases["checkpoint stall"] = 0.0
    rest = 1 + step.machine.rest
    stall = _checkpoints_a_step(step.config, rest * sum(phases.values())) * checkpoint.stall_seconds
    phases["checkpoint stall"] = stall
    seconds = rest * sum(phases.values())
    sent, refused = traffic(step), _why_refused(step)
    return Plan(
        workers=step.workers,
        machine=step.machine.name,
        machine_source=step.machine.source,
        memory=memory.device,
        host_memory=memory.host,
        memory_bytes=memory.device_bytes,
        host_memory_bytes=memory.host_bytes,
        lacking=memory.lacking,
        refused=refused,
        fits=not memory.lacking and not refused,
        step_seconds=seconds,
        phases=phases,
        spent=asdict(sum(spent.values(), Spent())),
        traffic=sent,
        links=Network(step.machine, step.workers).links(sent),
        distinct_rows=sum(step.distinct_rows.values()),
        rows_per_worker=rows_per_worker(step),
        request_balance=request_balance(step),
        tokens_per_second=step.target_tokens / seconds,
        bottleneck="",
        remedies=[],
        checkpoint=checkpoint,
        prepared=step.text.prepared,
    )


def _checkpoints_a_step(config: Config, seconds: float) -> float:
    """How many are made for each step of so many seconds: by steps or by the clock, which starts
    anew with each, whichever comes first.
    """
    steps, minutes = config.checkpoint.every_steps, config.checkpoint.every_minutes
    by_clock = seconds / (60 * minutes) if minutes else 0.0
    return max(by_clock, 1 / steps if steps else 0.0)


def _why_refused(step: Step) -> str:
    """What the check before a run says on the machine that it is planned for."""
    machine, config = step.machine, step.config
    if machine.device == "cuda":
        rate = GPU_RATE
    else:
        threads = max(1, machine.cores // machine.workers_of_node(step.workers))
        kind = "matrix units" if step.narrow else "usual"
        rate = (config.cluster.threads_per_worker or threads) * CPU_THREAD_RATE[kind]
    return why_refused(config, step.text.vocabulary_size["target"], step.workers, rate)

"""A run planned from its configuration: memory, traffic, time, balance, checkpoints.

Nothing is allocated and PyTorch is not imported: any size is planned within a second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dist_embed.arguments import whole_number
from dist_embed.config.schema import Config
from dist_embed.embedding.plan import shard_of
from dist_embed.embedding.row_order import MOST_ROWS
from dist_embed.errors import UserError
from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning import limits
from dist_embed.planning.balance import rows_per_worker
from dist_embed.planning.checkpoint import CheckpointPlan
from dist_embed.planning.cost import Cost
from dist_embed.planning.machine import Machine
from dist_embed.planning.memory import Lacking, worker_memory
from dist_embed.planning.step import Step
from dist_embed.planning.text import Text
from dist_embed.planning.traffic import Network, traffic
from dist_embed.planning.waits import costs_with_waits, planning_seconds
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
        threads: of a worker on a CPU; with a GPU 1.
        oversubscribed: whether workers of a node have more threads than it has cores.
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
            checkpoint's stall, which a run's own ``step_seconds`` leaves out; with the wait for the
            worker that is asked for most rows.
        phases: seconds of a step by the names that a run records.
        spent: seconds of a step by what they are spent on, see `cost.Cost`.
        traffic: bytes that a worker sends in a step, by what they are.
        links: the same by where they go.
        distinct_rows: that a worker looks up in a step, of all tables.
        planning_seconds: of processor time on every worker, to plan a step's batches.
        negatives: that are drawn for a step; 0 with the exact output layer.
        rows_per_worker: the fewest and the most rows that a worker holds.
        request_balance: rows that the worker is asked for that is asked for most, by the mean.
        tokens_per_second: target tokens.
        bottleneck: what limits it first, in words.
        remedies: what would change that.
        not_built: what nothing does yet, and would: that every worker has the most frequent rows;
            that each plans its part of the batches. Whatever it gives.
        checkpoint: bytes and seconds of one, and how often there is one.
        prepared: whether prepared data were asked; else words are by Zipf's law and at most
            `tokenizer.vocab_size`.
    """

    workers: int
    threads: int
    oversubscribed: bool
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
    planning_seconds: float
    negatives: int
    rows_per_worker: tuple[int, int]
    request_balance: float
    tokens_per_second: float
    bottleneck: str
    remedies: list[Remedy]
    not_built: list[Remedy]
    checkpoint: CheckpointPlan
    prepared: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Of `as_dict`."""
        return cls(
            **values | {
                "rows_per_worker": tuple(values["rows_per_worker"]),
                "remedies": [Remedy(**one) for one in values["remedies"]],
                "not_built": [Remedy(**one) for one in values["not_built"]],
                "checkpoint": CheckpointPlan(**values["checkpoint"]),
            }
        )  # fmt: skip


def step_of(config: Config, workers: int, machine: Machine, text: Text) -> Step:
    """A step with so many workers. Raises UserError: there cannot be so many, or so many rows."""
    workers = whole_number("workers", workers, 1)
    cluster = config.cluster.model_copy(update={"num_workers": workers})
    step = Step(config.model_copy(update={"cluster": cluster}), machine, text, workers)
    for spec in step.specs.values():
        if spec.num_rows > MOST_ROWS:
            raise UserError(
                f"tokenizer.vocab_size: table {spec.name!r} would have {spec.num_rows:,} rows; at "
                f"most {MOST_ROWS:,} are allowed"
            )
        shard = shard_of(spec.num_rows, 0, workers).physical_rows
        fed = -(-spec.num_rows // shard)
        if fed < workers:
            raise UserError(
                f"workers: {workers} is not allowed: table {spec.name!r} has {spec.num_rows:,} "
                f"rows, {shard:,} on each of {fed:,} workers, and none is left for the others"
            )
    return step


def estimated(step: Step) -> Plan:
    """A plan without what would change it."""
    memory, refused = worker_memory(step), _why_refused(step)
    costs, checkpoint = costs_with_waits(step)
    phases = {name: cost.seconds for name, cost in costs.items()}
    seconds = sum(phases.values())
    sent = traffic(step)
    if refused:
        limit = f"refused, whatever memory there is: {refused}"
    elif memory.lacking:
        limit = limits.of_memory(memory, step)
    else:
        limit = limits.of_time(costs, seconds, checkpoint, step)
    return Plan(
        workers=step.workers,
        threads=step.threads,
        oversubscribed=step.oversubscribed,
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
        spent=asdict(sum(costs.values(), Cost())),
        traffic=sent,
        links=Network(step.machine, step.workers).links(sent),
        distinct_rows=sum(step.distinct_rows.values()),
        planning_seconds=planning_seconds(step),
        negatives=step.drawn,
        rows_per_worker=rows_per_worker(step.specs.values(), step.workers),
        request_balance=step.request_balance,
        tokens_per_second=step.target_tokens / seconds,
        bottleneck=limit,
        remedies=[],
        not_built=[],
        checkpoint=checkpoint,
        prepared=step.text.prepared,
    )


def _why_refused(step: Step) -> str:
    """What the check before a run says on the machine that it is planned for."""
    machine = step.machine
    if machine.device == "cuda":
        rate = GPU_RATE
    elif machine.thread_gflops is not None:
        rate = step.threads * 1e9 * machine.thread_gflops
    else:  # it may be less, and the run refused all the same; what would run is not skipped
        rate = step.threads * max(CPU_THREAD_RATE.values())
    return why_refused(step.config, step.text.vocabulary_size["target"], step.workers, rate)

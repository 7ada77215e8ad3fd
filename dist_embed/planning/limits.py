"""What limits a run first, in words."""

from __future__ import annotations

from collections.abc import Mapping

from dist_embed.observe.phase_names import PhaseName
from dist_embed.planning.checkpoint import CheckpointPlan
from dist_embed.planning.cost import Cost
from dist_embed.planning.memory import WorkerMemory
from dist_embed.planning.step import Step

_IN_WORDS = {
    "compute": "matrix products", "memory": "reading and writing memory",
    "operations": "starting small operations", "latency": "the latency of exchanges",
    "network": "bytes on the network", "hot": "the worker that is asked for most rows",
    "data": "planning the data", "stall": "checkpoints",
}  # fmt: skip


def of_memory(memory: WorkerMemory, step: Step) -> str:
    """That there is not so much memory, and what takes most of it."""
    parts = memory.device if memory.lacking == "device" else memory.host
    part = max(parts, key=lambda name: parts[name])
    return (
        f"memory: {_gib(memory.device_bytes)} of a worker"
        + (f" and {_gib(memory.host_bytes)} on its host" if memory.host else "")
        + f"; {_there(step)}; the largest part is {part}, {_gib(parts[part])}"
    )


def of_time(
    costs: Mapping[PhaseName, Cost], seconds: float, checkpoint: CheckpointPlan, step: Step
) -> str:
    """What most of a step of so many seconds goes to."""
    spent = sum(costs.values(), Cost())
    kind = max(_IN_WORDS, key=lambda name: float(getattr(spent, name)))

    def of_kind(name: PhaseName) -> float:
        return float(getattr(costs[name], kind))

    share = f"{_IN_WORDS[kind]}: {getattr(spent, kind) / seconds:.0%} of a step"
    if kind == "stall":
        return f"{share}, {checkpoint.stall_seconds:,.1f} s each {checkpoint.steps or 0:,.0f} steps"
    if kind == "data":
        return f"{share}: every worker plans the batches of all, {step.pairs:,.0f} sentence pairs"
    phase = max(costs, key=of_kind)
    most = f"{share}, most of it in {phase!r} ({of_kind(phase) / seconds:.0%})"
    if kind == "hot":
        return f"{most}; it is asked for {step.request_balance:,.1f} times the mean"
    return most


def _there(step: Step) -> str:
    machine = step.machine
    node = f"{machine.node_memory_gib:g} GiB for {machine.workers_of_node(step.workers)} workers"
    if machine.device == "cuda":
        return f"a GPU has {machine.device_memory_gib:g} GiB, a node {node}"
    return f"a node has {node}"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"

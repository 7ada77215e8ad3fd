"""The plan of each of a study's runs: whether it fits, and what stands beside its figures."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from dist_embed.cluster.launch import cluster_address
from dist_embed.config.schema import Config
from dist_embed.embedding.memory import GIB, PROCESS_BYTES, available_bytes
from dist_embed.errors import UserError
from dist_embed.parallel.device import has_native_bf16, resolve_device
from dist_embed.planning import Machine, Plan, load_machine
from dist_embed.planning.estimate import estimated, step_of
from dist_embed.planning.machine import Products, usual_machine
from dist_embed.planning.page import given
from dist_embed.planning.text import text_of
from dist_embed.planning.verdict import remedies
from dist_embed.training.step_seconds import worker_rate


@dataclass(frozen=True)
class Estimate:
    """A run's plan.

    Attributes:
        plan: what it is expected to take.
        fits: whether its machine has the memory, and `train` would start it there; None: the
            machine is not known.
        memory_gib: of a node of it.
    """

    plan: Plan
    fits: bool | None
    memory_gib: float

    def why_not(self) -> str:
        """That it does not fit, or is refused, with what would do."""
        remedies = [
            f"{one.change} ({given(one, self.plan)})" for one in self.plan.remedies if one.fits
        ]
        ways = f"; it would with {' or '.join(remedies[:3])}" if remedies else ""
        told = "" if self.plan.refused else "does not fit by its plan: "
        return f"{told}{self.plan.bottleneck}{ways}"

    def columns(self) -> dict[str, Any]:
        """Of `dist_embed.study.results`."""
        return planned_columns(self.plan) | {"planned_fits": self.fits}


class Planner:
    """Plans runs for one machine.

    Args:
        machine: name or file; None: this machine, where it trains on CPUs. On others, and on GPUs,
            a plan is for the usual machine, and does not say what fits.

    Raises UserError: there is no such machine.
    """

    def __init__(self, machine: str | None) -> None:
        self._load = cache(load_machine)  # each file is read once
        self._named = self._load(machine) if machine else None

    def estimate(self, config: Config) -> Estimate:
        """Of one run, with remedies where it does not fit.

        Raises UserError: a table has no row for some worker, or the machine is none that the run
        would train on.
        """
        machine = self._named or self._this_machine(config)
        device: str = config.cluster.device
        if device == "auto" and not cluster_address(config):
            device = resolve_device("auto")
        if machine and device not in ("auto", machine.device):
            raise UserError(
                f"machine: {machine.name!r} is not allowed: it has {machine.device!r}, and the "
                f"runs are on {device!r} (cluster.device)"
            )
        usual = machine or self._load(usual_machine(config))
        step = step_of(config, config.cluster.max_workers, usual, text_of(config))
        found = estimated(step)
        if not found.fits:
            found = replace(found, remedies=remedies(found, step))
        memory = machine.node_memory_gib if machine else 0.0
        return Estimate(found, found.fits if machine else None, memory)

    def _this_machine(self, config: Config) -> Machine | None:
        if cluster_address(config) or resolve_device(config.cluster.device) != "cpu":
            return None
        usual = self._load("cpu")
        # As the check before a run has them, so that both say the same.
        here = {
            "source": f"{usual.source}; cores and memory are this machine's",
            "thread_gflops": worker_rate("cpu", 1, config.train.precision) / 1e9,
            "cores": len(os.sched_getaffinity(0)),
            "node_memory_gib": available_bytes() / GIB,
            "process_mib": PROCESS_BYTES / 2**20,
            "products": _products(usual, narrow=has_native_bf16(torch.device("cpu"))),
        }
        return usual.model_copy(update=here)


def _products(machine: Machine, *, narrow: bool) -> list[Products]:
    """Of types that there are here: those of bfloat16 as they were measured, else as float32."""
    full, half = (
        [one for one in machine.products if one.type == dtype] for dtype in ("fp32", "bf16")
    )
    taken = half or [one.model_copy(update={"type": "bf16"}) for one in full]
    return [*full, *(taken if narrow else [])]


def planned_columns(found: Plan) -> dict[str, Any]:
    """A plan as columns of a result, but for what is said of memory that is there."""
    return {
        "planned_machine": found.machine,
        "planned_source": found.machine_source,
        "planned_refused": bool(found.refused),
        "planned_tokens_per_second": found.tokens_per_second,
        "planned_step_seconds": found.step_seconds,
        "planned_phases": found.phases,
        "planned_memory_bytes": found.memory_bytes,
        "planned_memory": found.memory,
        "planned_exchange_bytes": sum(found.traffic.values()),
        "planned_distinct_rows": found.distinct_rows,
        "planned_served_balance": found.request_balance,
        "planned_checkpoint_seconds": found.checkpoint.seconds,
        "planned_bottleneck": found.bottleneck,
        "plan": json.dumps(found.as_dict()),
    }

"""A machine file of this machine: speeds, then small runs that tell what a process takes."""

from __future__ import annotations

import os
from datetime import date
from statistics import median
from typing import Any, get_args

import torch
import yaml

from dist_embed.bench.machine_speeds import measure_speeds
from dist_embed.bench.planned_runs import LOG_STEPS, Case, Output, Runs
from dist_embed.bench.store_speed import measure_store
from dist_embed.bench.workers import Say
from dist_embed.embedding.memory import GIB, machine_bytes
from dist_embed.parallel.device import device_name
from dist_embed.planning.estimate import step_of
from dist_embed.planning.machine import Machine
from dist_embed.planning.memory import worker_memory
from dist_embed.planning.text import text_of

# Runs that tell what a process takes: words by the output layer; width, and tokens of a worker.
# A plan is compared with other runs.
_WORDS: dict[Output, int] = {"exact": 30_000, "sampled": 300_000}
_WIDTH, _TOKENS = 96, 1536
MEASURED = "measured by calibrate"


def calibrate(folder: str, store: str, workers: list[int], say: Say) -> Machine:
    """Measure this machine, with one worker and with each number of ``workers``.

    Args:
        folder: for runs, which leave nothing there.
        store: folder or URL of checkpoints.
        workers: numbers from 2 on.
        say: takes lines of progress.
    """
    cores = len(os.sched_getaffinity(0))
    speeds = measure_speeds(cores, workers, say)
    slowest = max(speeds["exchanges"], key=lambda one: one["latency_us"])
    say("the store")
    machine = Machine.model_validate(
        {
            "name": "this machine",
            "source": f"{MEASURED} on {cpu_name(cores)}, {date.today()}",
            "device": "cpu",
            "cores": cores,
            "node_memory_gib": machine_bytes() / GIB,
            "process_mib": 0.0,
            "within_node": {key: slowest[key] for key in ("latency_us", "gb_s")}
            | {"peer_us": _peer_us(speeds["exchanges"])},
            "store": measure_store(store),
            **speeds,
        }
    )  # fmt: skip
    runs = Runs(folder, say)
    held = [
        _process_mib(runs, machine, number, output)
        for number in (1, *workers)
        for output in get_args(Output)
    ]
    return machine.model_copy(update={"process_mib": max(0.0, round(median(held), 1))})


def _peer_us(exchanges: list[dict[str, Any]]) -> float:
    """What each worker more adds to the latency of messages from each to each."""
    points = sorted(
        (one["workers"], one["latency_us"]) for one in exchanges if one["kind"] == "all_to_all"
    )
    (few, less), (many, more) = points[0], points[-1]
    return max(0.0, (more - less) / (many - few)) if many > few else 0.0


def _process_mib(runs: Runs, machine: Machine, workers: int, output: Output) -> float:
    """What a worker of a run held beside what can be told apart; ``machine`` has 0 of it."""
    case = Case(output, _WORDS[output], _WIDTH, workers, _TOKENS * workers, 2 * LOG_STEPS)
    config = runs.config(case)
    known = worker_memory(step_of(config, workers, machine, text_of(config))).device_bytes
    return (runs.measured(case).memory_bytes - known) / 2**20


def cpu_name(cores: int) -> str:
    """What figures of this machine are told with."""
    return f"{cores} cores of {device_name(torch.device('cpu'))}"


def machine_yaml(machine: Machine, name: str, said: str) -> str:
    """The file of a machine by that name; ``said``: when and by what it was measured."""
    values = machine.model_dump(exclude_none=True) | {"name": name}
    lines = yaml.safe_dump(_rounded(values), sort_keys=False, width=100).splitlines()
    return "\n".join(
        [f"# {cpu_name(machine.cores)}. All figures {MEASURED}:", f"# {said}", *lines, ""]
    )


def _rounded(value: object) -> object:
    """Four digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value

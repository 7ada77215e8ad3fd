"""A machine file of this machine: speeds, then steps of small runs by which a plan is set right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any, get_args

import torch
import yaml

from dist_embed.bench.machine_speeds import measure_speeds
from dist_embed.bench.planned_runs import LOG_STEPS, Case, Measured, Output, Runs
from dist_embed.bench.store_speed import measure_store
from dist_embed.bench.workers import Say
from dist_embed.embedding.memory import GIB
from dist_embed.observe.phase_names import PhaseName
from dist_embed.parallel.device import device_name
from dist_embed.parallel.machine import machine_bytes, usable_cores
from dist_embed.planning.cost import Cost
from dist_embed.planning.estimate import step_of
from dist_embed.planning.machine import Machine
from dist_embed.planning.memory import worker_memory
from dist_embed.planning.seconds import StepTime
from dist_embed.planning.step import Step
from dist_embed.planning.text import text_of
from dist_embed.training.step_seconds import worker_rate

# Runs by which a machine is calibrated: words by the output layer; width and tokens of a worker
# that is alone, in two sizes, and of one among others, which bring gradients together to clip them
# too. A plan is compared with other runs.
_WORDS: dict[Output, int] = {"exact": 30_000, "sampled": 300_000}
_ALONE, _AMONG_OTHERS = ((80, 1024), (112, 3072)), ((96, 1536),)
_STEPS, _LEAST_FACTOR = 4 * LOG_STEPS, 0.01
MEASURED = "measured by calibrate"
# Phases without an exchange, and large enough: they tell how much longer work takes beside others.
_OWN_WORK: tuple[PhaseName, ...] = ("encoder", "decoder")


def calibrate(folder: str, store: str, workers: list[int], say: Say) -> Machine:
    """Measure this machine, with one worker and with each number of ``workers``.

    Args:
        folder: for runs, which leave nothing there.
        store: folder or URL of checkpoints.
        workers: numbers from 2 on.
        say: takes lines of progress.
    """
    cores = usable_cores()
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
            "thread_gflops": worker_rate("cpu", 1, "auto") / 1e9,
            "within_node": {key: slowest[key] for key in ("latency_us", "gb_s")}
            | {"peer_us": _peer_us(speeds["exchanges"])},
            "store": measure_store(store),
            **speeds,
        }
    )  # fmt: skip
    runs = Runs(folder, say)
    probes = [probe for number in (1, *workers) for probe in _probes(runs, machine, number)]
    work = {output: _work_factors(probes, output) for output in get_args(Output)}
    crowded = {number: _crowded(probes, number, work) for number in workers}
    return Machine.model_validate(
        machine.model_dump() | {
            "process_mib": _process_mib(probes),
            "factors": {
                output: _factors(probes, output, factors, crowded)
                for output, factors in work.items()
            },
            "crowding": [
                {"workers": number, "factor": factor} for number, factor in crowded.items()
            ],
            "rest": median(_rest(probe) for probe in probes),
        }
    )  # fmt: skip


def _peer_us(exchanges: list[dict[str, Any]]) -> float:
    """What each worker more adds to the latency of messages from each to each."""
    points = sorted(
        (one["workers"], one["latency_us"]) for one in exchanges if one["kind"] == "all_to_all"
    )
    (few, less), (many, more) = points[0], points[-1]
    return max(0.0, (more - less) / (many - few)) if many > few else 0.0


@dataclass(frozen=True)
class _Probe:
    """A run as it was planned and as it was.

    Attributes:
        output: of its output layer.
        step: which.
        costs: by phase, without factors or waits.
        measured: what it took.
    """

    output: Output
    step: Step
    costs: dict[PhaseName, Cost]
    measured: Measured


def _probes(runs: Runs, machine: Machine, workers: int) -> Iterator[_Probe]:
    for output in get_args(Output):
        for width, tokens in _ALONE if workers == 1 else _AMONG_OTHERS:
            for clip_norm in (0.0,) if workers == 1 else (0.0, 1.0):
                case = Case(
                    output, _WORDS[output], width, workers, tokens * workers, _STEPS,
                    clip_norm=clip_norm,
                )  # fmt: skip
                config = runs.config(case)
                measured = runs.measured(case)
                step = step_of(config, workers, machine, text_of(config))
                yield _Probe(output, step, StepTime(step).costs(), measured)


Factors = dict[PhaseName, float]


def _work_factors(probes: list[_Probe], output: Output) -> Factors:
    """Of what a worker does by itself: from runs of one."""
    alone = [probe for probe in probes if probe.output == output and probe.step.workers == 1]
    return {
        name: _ratio([(probe.measured.phases[name], probe.costs[name].work) for probe in alone])
        for name in alone[0].costs
    }


def _crowded(probes: list[_Probe], workers: int, work: dict[Output, Factors]) -> float:
    """How much longer own work takes with so many workers."""
    return _ratio(
        [
            (probe.measured.phases[name], work[probe.output][name] * probe.costs[name].work)
            for probe in probes
            for name in _OWN_WORK
            if probe.step.workers == workers
        ]
    )


def _factors(
    probes: list[_Probe], output: Output, work: Factors, crowded: dict[int, float]
) -> dict[PhaseName, dict[str, float]]:
    """Of work and exchanges: the latter is what runs of several workers took more."""
    exchange: defaultdict[PhaseName, list[tuple[float, float]]] = defaultdict(list)
    for probe in probes:
        if probe.output != output or probe.step.workers == 1:
            continue
        for name, cost in probe.costs.items():
            own = crowded[probe.step.workers] * work[name] * cost.work
            if cost.exchange:
                exchange[name].append((probe.measured.phases[name] - own, cost.exchange))
    return {
        name: {"work": factor, "exchange": _ratio(exchange[name])} for name, factor in work.items()
    }


def _ratio(pairs: list[tuple[float, float]]) -> float:
    """All that was measured by all that was planned, so that small ones, which are mostly noise,
    count for little; 1 of none.
    """
    if not pairs:
        return 1.0
    return max(_LEAST_FACTOR, sum(one for one, _ in pairs) / sum(other for _, other in pairs))


def _rest(probe: _Probe) -> float:
    phases = sum(probe.measured.phases.values())
    return max(0.0, probe.measured.step_seconds / phases - 1)


def _process_mib(probes: list[_Probe]) -> float:
    """What runs held beside what can be told apart."""
    rest = (
        probe.measured.memory_bytes - worker_memory(probe.step).device_bytes for probe in probes
    )
    return max(0.0, round(median(rest) / 2**20, 1))


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

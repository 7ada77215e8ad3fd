"""What a cluster costs a run: its start, workers and nodes that are lost, Ray's share of a step;
and how fast data come.

All on this machine, whose processes stand for nodes; each stage in a folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dist_embed.api.data import prepare
from dist_embed.bench import cluster_course, cluster_data
from dist_embed.bench.cluster_runs import bench_config, silent
from dist_embed.bench.launchers import measure_launchers
from dist_embed.bench.workers import Say
from dist_embed.errors import RunFailed
from dist_embed.installed import MissingPackage, require
from dist_embed.observe.plot import GREY, INK, plot_into
from dist_embed.parallel.machine import usable_cores
from dist_embed.storage.temporary import temporary_folder

Figures = dict[str, Any]
_CORES = 2  # as many as workers


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: of each launcher, in turns.
        steps: of a round, and of the training that a loader is compared with.
        store: a folder or URL below which the loader's data are written; None: nowhere.
        say: takes a line for who waits.
    """

    rounds: int
    steps: int
    store: str | None
    say: Say


@dataclass(frozen=True)
class Stage:
    """One measurement.

    Attributes:
        measure: makes it, in an empty folder.
        rows: of what was found: what it is, how much, what it is to be.
        needs_ray: whether it cannot be made without.
    """

    measure: Callable[[str, Sizes], Figures]
    rows: Callable[[Figures], list[list[str]]]
    needs_ray: bool = True


def measure_cluster(stages: Sequence[str], sizes: Sizes) -> Figures:
    """The figures of each of ``stages`` by its name, why others are left out, and how those failed
    that did: the figures of the others are not lost with them.
    """
    os.environ.pop("RAY_ADDRESS", None)  # nothing is measured on somebody's cluster
    found: Figures = {}
    left_out, failed = {}, {}
    for name in stages:
        if why := _why_not(name, sizes):
            left_out[name] = why
            continue
        sizes.say(f"{name} …")
        try:
            with temporary_folder("dist_embed-bench-") as folder:
                found[name] = STAGES[name].measure(folder, sizes)
        except RunFailed as exc:
            failed[name] = str(exc)
    return {"stages": found, "left_out": left_out, "failed": failed}


def cluster_table(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """What was found beside what is aimed at, and what is missing."""
    rows = [
        [name, *row]
        for name, found in figures["stages"].items()
        for row in STAGES[name].rows(found)
    ]
    rows += [[name, f"left out: {why}", "", ""] for name, why in figures["left_out"].items()]
    rows += [[name, "failed", "", ""] for name in figures["failed"]]
    return ["stage", "what", "figure", "aim"], rows


def draw_elastic(figures: Figures, path: str) -> None:
    """Both runs' losses, one upon the other; nothing where they were not measured."""
    if (found := figures["stages"].get("elastic")) is None:
        return
    with plot_into(path) as axes:
        steps = range(1, 1 + len(found["losses"]))
        axes.plot(steps, found["undisturbed_losses"], color=GREY, label="2 workers, undisturbed")
        course = " → ".join(map(str, found["workers"]))
        axes.plot(steps, found["losses"], color=INK, linestyle=":", label=f"{course} workers")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)


def _why_not(stage: str, sizes: Sizes) -> str | None:
    """Why a stage cannot be measured here; None where it can."""
    if STAGES[stage].needs_ray:
        try:
            require("ray")
        except MissingPackage as exc:
            return str(exc)
    cores = usable_cores()
    if cores < _CORES:
        return f"it takes {_CORES} cores, and this machine has {cores}"
    if stage == "loader" and sizes.store is None:
        return "--store says nowhere to read from"
    return None


def _overhead(folder: str, sizes: Sizes) -> Figures:
    """With a core for Ray's own processes, and without one."""
    found: Figures = {}
    for workers in (1, _CORES):
        sizes.say(f"{workers} of {_CORES} cores for workers")
        config = bench_config(folder, "run", cluster={"num_workers": workers})
        data = prepare(config, on_event=silent)
        found[str(workers)] = measure_launchers(
            config, data.vocabulary_size, rounds=sizes.rounds, steps=sizes.steps,
            folder_uri=f"{folder}/{workers}", say=sizes.say,
        )  # fmt: skip
    return found


def _seconds(what: str, aim: str) -> Callable[[Figures], list[list[str]]]:
    return lambda found: [[what, f"{found['seconds']:.1f} s", aim]]


def _overhead_rows(found: Figures) -> list[list[str]]:
    rows = []
    for workers, measured in found.items():
        seconds, on = measured["step_seconds"], f"{workers} of {_CORES} cores"
        rows += [
            [f"a step on {on}, {name}", f"{value * 1000:.1f} ms", ""]
            for name, value in seconds.items()
        ]
        rows.append(
            [f"Ray's share, {on}", f"{seconds['ray'] / seconds['local'] - 1:+.1%}", "≤ 2 %"]
        )
    return rows


def _elastic_rows(found: Figures) -> list[list[str]]:
    course = " → ".join(map(str, found["workers"]))
    losses = found["losses"]
    return [
        [f"{course} workers: steps", f"{len(losses):,}", ""],
        ["loss, first and last", f"{losses[0]:.3f}, {losses[-1]:.3f}", ""],
        ["largest difference from an undisturbed run's", f"{found['largest_difference']:.1e}", ""],
    ]


def _prepare_rows(found: Figures) -> list[list[str]]:
    return [
        [f"{number} {by}", f"{speed:.2f} MB/s", ""]
        for by, speeds in found["mb_per_second"].items() for number, speed in speeds.items()
    ]  # fmt: skip


def _loader_rows(found: Figures) -> list[list[str]]:
    return [
        ["tokens of steps that are read", f"{found['read']:,.0f}/s", ""],
        ["of steps that are trained", f"{found['trained']:,.0f}/s", ""],
        ["read / trained", f"{found['read'] / found['trained']:.1f}", "≥ 10"],
    ]


STAGES = {
    "submit": Stage(
        lambda folder, _: cluster_course.measure_submit(folder),
        _seconds("from `submit` to the first step", ""),
    ),
    "kill": Stage(
        lambda folder, _: cluster_course.measure_kill(folder),
        _seconds("from a worker's end to the next step", "≤ 20 s"),
    ),
    "node": Stage(
        lambda folder, _: cluster_course.measure_node(folder),
        _seconds("from a node's end to the next step", "≤ 45 s"),
    ),
    "overhead": Stage(_overhead, _overhead_rows),
    "elastic": Stage(
        lambda folder, sizes: cluster_course.measure_elastic(folder, sizes.say), _elastic_rows
    ),
    "prepare": Stage(
        lambda folder, sizes: cluster_data.measure_prepare(folder, sizes.say), _prepare_rows
    ),
    "loader": Stage(
        lambda folder, sizes: cluster_data.measure_loader(folder, sizes.store or "", sizes.steps),
        _loader_rows, needs_ray=False,
    ),
}  # fmt: skip

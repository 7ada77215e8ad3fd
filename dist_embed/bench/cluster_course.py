"""How long runs on a cluster take to start, and to go on when something is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from dist_embed.api.data import prepare
from dist_embed.api.training import train
from dist_embed.bench.cluster_runs import (
    Command,
    bench_config,
    command,
    first_step_after,
    silent,
    steps_of,
    training,
    until,
    written,
)
from dist_embed.bench.ray_nodes import RayNodes, ray_nodes
from dist_embed.bench.workers import Say

_WORKERS = 2
_STEPS_BETWEEN = 20  # of a run between two things that befall it


def measure_submit(folder: str) -> dict[str, float]:
    """Seconds from `dist-embed submit` to the first step of the job, whose data are prepared."""
    config = bench_config(folder, "run")
    prepare(config, on_event=silent)
    with ray_nodes(folder, _WORKERS) as (cluster, _):
        there = cluster.environment | {"RAY_API_SERVER_ADDRESS": cluster.job_server}
        began = time.time()
        with command(["submit", written(config), "--to", "ray"], there) as submitted:
            submitted.ended(0)
        sent = time.time()
        until(lambda: bool(steps_of(config.run.uri)), "the first step of a job", lambda: None)
        first = steps_of(config.run.uri)[0]
    return {"sent_seconds": sent - began, "seconds": first.time - began}


def measure_kill(folder: str) -> dict[str, float]:
    """Seconds from the end of a worker's process to the first step of those that replace it."""

    def kill(cluster: RayNodes, nodes: list[subprocess.Popen[bytes]]) -> None:
        os.kill(cluster.workers(nodes[0])[0], signal.SIGKILL)

    return _measure_loss(folder, _WORKERS, kill)


def measure_node(folder: str) -> dict[str, float]:
    """The same of a node with a worker, where another one has room for it."""

    def kill(cluster: RayNodes, nodes: list[subprocess.Popen[bytes]]) -> None:
        cluster.kill(next(node for node in nodes if cluster.workers(node)))

    return _measure_loss(folder, _WORKERS + 1, kill)


def _measure_loss(
    folder: str,
    num_nodes: int,
    kill: Callable[[RayNodes, list[subprocess.Popen[bytes]]], None],
) -> dict[str, float]:
    prepare(bench_config(folder, "run"), on_event=silent)
    with ray_nodes(folder, num_nodes) as (cluster, nodes):
        config = bench_config(folder, "run", cluster={"address": cluster.address})
        with training(config, cluster.environment) as run:
            began = time.time()
            kill(cluster, nodes)
            return {"seconds": first_step_after(run, config.run.uri, began).time - began}


def measure_elastic(folder: str, say: Say) -> dict[str, Any]:
    """The losses of a run with 2, 1, 2 and 3 workers, and of one that nothing befell."""
    prepare(bench_config(folder, "whole"), on_event=silent)
    with ray_nodes(folder, 2) as (cluster, nodes):
        config = bench_config(
            folder, "elastic",
            cluster={"address": cluster.address, "num_workers": {"min": 1, "max": 3},
                     "replace_seconds": 3.0},
        )  # fmt: skip
        with training(config, cluster.environment) as run:
            for workers, change in ((1, partial(cluster.kill, nodes[0])), (2, cluster.add),
                                    (3, cluster.add)):  # fmt: skip
                _changed(run, config.run.uri, workers, change)
                say(f"{workers} workers train")
            run.process.terminate()
            run.ended(128 + signal.SIGTERM)
    found = [one.loss for one in steps_of(config.run.uri)]
    whole = bench_config(folder, "whole", train={"max_steps": len(found)})
    train(whole, on_event=silent)
    undisturbed = [one.loss for one in steps_of(whole.run.uri)]
    differences = [abs(a - b) for a, b in zip(found, undisturbed, strict=True)]
    return {
        "workers": [2, 1, 2, 3], "losses": found, "undisturbed_losses": undisturbed,
        "largest_difference": max(differences),
    }  # fmt: skip


def _changed(run: Command, run_uri: str, workers: int, change: Callable[[], object]) -> None:
    """Make a change, and wait until so many workers train after it."""
    told = len(run.said)
    change()
    run.until(
        lambda: any(line.startswith(f"{workers} workers on ") for line in run.said[told:]),
        f"a start of {workers} workers",
    )
    since = time.time()
    run.until(
        lambda: sum(one.time > since for one in steps_of(run_uri)) > _STEPS_BETWEEN,
        f"steps of {workers} workers",
    )

"""What every launcher calls: Ray Train, plain local processes, torchrun, the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch

from dist_embed.config.schema import Config
from dist_embed.observe.events import Emit, Event, Reporter, silent_reporter
from dist_embed.observe.quiet import redirect_output, worker_log
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.device import resolve_device
from dist_embed.parallel.errors import errors_shared
from dist_embed.parallel.group import Group, joined_group
from dist_embed.parallel.hang import hangs_named
from dist_embed.parallel.torchrun import under_torchrun
from dist_embed.run.logs import uploaded
from dist_embed.training.step_seconds import threads_per_worker
from dist_embed.training.tasks import Task

R = TypeVar("R")
# What the launching process answers on worker 0: the answer of a number, waited for so many seconds
# at most; None: it is not there yet.
Receive = Callable[[int, float], Event | None]


@dataclass(frozen=True)
class Context:
    """What a task gets: the configuration, this worker's place, and the line to the user.

    ``receive``: answers to events of worker 0, where the task asks for any.
    """

    config: Config
    group: Group
    reporter: Reporter
    receive: Receive | None = None


def run_worker(task: Task[R], config: Config, emit: Emit, receive: Receive | None = None) -> R:
    """Join the group, do ``task``, and return its result.

    Args:
        task: such as `dist_embed.training.tasks.Train`.
        config: of the run; for the device that was found.
        emit: takes worker 0's events, and from any worker who holds up the others.
        receive: see `Context`.

    Collective. Whatever fails on one worker is raised on all of them.
    """
    # It takes seconds: not while others wait. Under torchrun the process may be somebody's.
    with collector_off(freeze=not under_torchrun()):
        do = task.function()
    log = worker_log(config.run.uri, int(os.environ.get("RANK", "0")), trains=task.trains)
    redirect_output(log)
    torch.set_num_threads(threads_per_worker(config))
    keep_freed_memory()
    device = resolve_device(config.cluster.device)
    with (
        uploaded(log, config.run.uri) if task.trains else nullcontext(),
        joined_group(device, config.cluster.timeout_seconds) as group,
        errors_shared(group),
        hangs_named(
            group,
            config.cluster.hang_seconds,
            Reporter(emit).line,
            limit=config.cluster.timeout_seconds,
        ),
    ):
        reporter = Reporter(emit) if group.is_first else silent_reporter()
        in_run = worker_log(config.run.uri, group.rank, trains=True)
        if log != in_run:
            reporter.line(f"logs go to {log.parent}, for {in_run} cannot be written")
        return do(Context(config, group, reporter, receive))

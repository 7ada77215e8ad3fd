"""What every launcher calls: Ray Train, plain local processes, torchrun, the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.observe.events import Emit, Reporter, silent_reporter
from dist_embed.observe.quiet import redirect_output, worker_log_folder
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.device import resolve_device
from dist_embed.parallel.errors import errors_shared
from dist_embed.parallel.group import Group, joined_group
from dist_embed.train.step_seconds import threads_per_worker

# What a worker is asked to do: a function that every launcher can name (`cluster/work.py`).
Task = Callable[["Context"], Any]


@dataclass(frozen=True)
class Context:
    """What a task gets: the configuration, this worker's place, and the line to the user."""

    config: Config
    group: Group
    reporter: Reporter
    options: dict[str, Any]

    @property
    def data_folder(self) -> str | None:
        """The prepared data that the launching process has looked into; see `data_of_all`."""
        folder: str | None = self.options.get("data_folder")
        return folder


def run_worker(
    task: Task, config_values: dict[str, Any], options: dict[str, Any], emit: Emit
) -> Any:
    """Join the group, run ``task``, and return its result.

    Args:
        task: such as `dist_embed.train.training.train_task`.
        config_values: the configuration as plain values.
        options: the task's own arguments.
        emit: takes worker 0's events.

    Collective. Whatever fails on one worker is raised on all of them.
    """
    config = config_from_dict(config_values)
    log_name = f"worker-{os.environ.get('RANK', '0')}.log"
    redirect_output(worker_log_folder(config.run.uri) / log_name)
    torch.set_num_threads(threads_per_worker(config))
    keep_freed_memory()
    device = resolve_device(config.cluster.device)
    with joined_group(device, config.cluster.timeout_seconds) as group, errors_shared(group):
        reporter = Reporter(emit) if group.is_first else silent_reporter()
        return task(Context(config, group, reporter, options))

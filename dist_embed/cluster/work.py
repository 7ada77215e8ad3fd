"""What launchers start in a worker process.

A task goes by its name, so that the launching process need not import what a worker needs, which
takes seconds.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_embed.observe.events import Emit

# "module:function"; the function takes a `dist_embed.train.worker.Context`.
TRAIN = "dist_embed.train.training:train_task"
EVALUATE = "dist_embed.train.inference:evaluate_task"
TRANSLATE = "dist_embed.train.inference:translate_task"
INFERENCE = (EVALUATE, TRANSLATE)  # read the tables alone
BASELINE = "dist_embed.bench.baseline:baseline_task"
STEP = "dist_embed.bench.step_profile:step_task"


def work(task: str, config_values: dict[str, Any], options: dict[str, Any], emit: Emit) -> Any:
    """Run a task by its name: see `dist_embed.train.worker.run_worker`. Collective."""
    from dist_embed.train.worker import run_worker

    module, name = task.split(":")
    return run_worker(getattr(import_module(module), name), config_values, options, emit)


def under_torchrun() -> bool:
    """Whether this process was started by torchrun and is a worker itself."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ

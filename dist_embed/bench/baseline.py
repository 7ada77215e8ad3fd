"""Training speed of dist_embed and of a plain PyTorch DDP model, also compiled, in turns."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice, zip_longest
from statistics import median
from typing import Any

import torch

from dist_embed.bench.plain_model import Step, plain_training_step
from dist_embed.bench.tasks import Baseline
from dist_embed.bench.workers import Prepare, as_it_is, meet, steps_of_data
from dist_embed.config.schema import Config
from dist_embed.data.loader import StepBatches
from dist_embed.data.token_shards import PreparedData
from dist_embed.parallel.device import device_name
from dist_embed.parallel.errors import WorkerError
from dist_embed.parallel.group import Group
from dist_embed.run.data import data_of_all
from dist_embed.training.assemble import (
    build_dense_optimizer,
    build_translation_model,
)
from dist_embed.training.train import build_train_step, output_of_data
from dist_embed.training.worker import Context


def baseline_task(context: Context, asked: Baseline) -> dict[str, Any]:
    """Target tokens/s of each side. Collective.

    Every round runs for each precision ours, the plain model and where it is asked for the plain
    model compiled, on the same batches. All of them make a round before the clock starts. A
    compiled side is left out, with the reason, where PyTorch cannot compile it.
    """
    config, group = context.config, context.group
    data = data_of_all(config, group, asked.data_folder)
    steps = partial(steps_of_data, config, data, group, accumulate=1)
    sides: dict[str, tuple[Step, Prepare]] = {}
    left_out: dict[str, str] = {}
    count = asked.steps
    for precision in asked.precisions:
        sides[f"dist_embed {precision}"] = _our_step(config, data, group, precision)
        plain = partial(
            plain_training_step, config, data.vocabulary_size["source"],
            data.vocabulary_size["target"], group, bf16=precision == "bf16",
        )  # fmt: skip
        sides[f"plain DDP {precision}"] = plain(), as_it_is
        if asked.compiled:
            name = f"plain DDP {precision}, compiled"
            started = time.perf_counter()
            first = [w.batches[0] for w in islice(steps(), count)]
            try:
                sides[name] = plain(compiled_for=first), as_it_is
            except Exception as exc:  # no compiler, no Triton, no memory, …
                left_out[name] = _first_line(exc)
                logging.getLogger(__name__).warning("%s: left out", name, exc_info=exc)
                context.reporter.line(f"{name}: left out: {left_out[name]}")
            else:
                took = time.perf_counter() - started
                context.reporter.line(f"{name}: compiled in {took:.0f} s")
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(asked.rounds + 1):
        for name, side in sides.items():
            speed = _measure(*side, steps(), count, group)
            if number:
                speeds[name].append(speed)
        if number:
            context.reporter.line(f"round {number} of {asked.rounds} done")
    return {
        "tokens_per_second": {name: median(found) for name, found in speeds.items()},
        "all_rounds": speeds,
        "left_out": left_out,
        "workers": group.num_workers,
        "threads_per_worker": torch.get_num_threads(),
        "device": device_name(group.device),
    }


def _first_line(error: Exception) -> str:
    """What PyTorch's compiler says at length in short: the rest is in the worker's log."""
    if isinstance(error, WorkerError):
        return f"worker {error.rank} failed; its log says why"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _our_step(
    config: Config, data: PreparedData, group: Group, precision: str
) -> tuple[Step, Prepare]:
    train = config.train.model_copy(update={"precision": precision})
    config = config.model_copy(update={"train": train})
    translation_model = build_translation_model(config, data.vocabulary_size, group)
    optimizer = build_dense_optimizer(config, translation_model.transformer)
    output = output_of_data(config, translation_model, data)
    step = build_train_step(config, translation_model, output, optimizer)
    return step.run, step.prepare


def _measure(
    step: Step, prepare: Prepare, steps: Iterator[StepBatches], count: int, group: Group
) -> float:
    """Target tokens/s over ``count`` steps.

    What a run's loader does in its thread, batches and their preparation, is done on the host
    before the clock starts.
    """
    work = [prepare(number, next(steps)).to(group.device) for number in range(1, count + 1)]
    gc.collect()
    started = meet(group)
    for number, (batches, following) in enumerate(zip_longest(work, work[1:]), start=1):
        step(number, batches, following)
    return sum(batches.global_tokens for batches in work) / (meet(group) - started)

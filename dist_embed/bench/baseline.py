"""Training speed of dist_embed and of a plain PyTorch DDP model, in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from statistics import median
from typing import Any

import torch

from dist_embed.bench.plain_model import Step, plain_training_step
from dist_embed.config.schema import Config
from dist_embed.data.loader import Loader, Position, StepBatches
from dist_embed.data.prepare import read_counts
from dist_embed.data.token_shards import PreparedData
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.device import device_name
from dist_embed.parallel.group import Group
from dist_embed.train.assemble import build_dense_optimizer, build_output, build_translator
from dist_embed.train.run_data import data_of_all
from dist_embed.train.worker import Context, build_train_step

WARM_UP_STEPS = 3
Prepare = Callable[[int, StepBatches], StepBatches]


def baseline_task(context: Context) -> dict[str, Any]:
    """Target tokens/s of each side. Collective.

    Options: ``rounds`` of ``steps`` steps each; every round runs ours in float32, the plain model
    in float32, then both in bfloat16 where ``bf16`` is set, on the same batches.
    """
    config, group, options = context.config, context.group, context.options
    data = data_of_all(config, group, options.get("data_folder"))
    data_uri = data.folder_uri
    sides: dict[str, tuple[Step, Prepare]] = {}
    precisions = ["fp32", "bf16"] if options["bf16"] else ["fp32"]
    for precision in precisions:
        sides[f"dist_embed {precision}"] = _our_step(config, data_uri, data, group, precision)
        plain = plain_training_step(
            config, data.vocabulary_size["source"], data.vocabulary_size["target"], group,
            bf16=precision == "bf16",
        )  # fmt: skip
        sides[f"plain DDP {precision}"] = plain, lambda number, work: work
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        _measure(*side, _steps(config, data_uri, data, group), WARM_UP_STEPS, group)
    for number in range(options["rounds"]):
        for name, side in sides.items():
            steps = _steps(config, data_uri, data, group)
            speeds[name].append(_measure(*side, steps, options["steps"], group))
        context.reporter.line(f"round {number + 1} of {options['rounds']} done")
    return {
        "tokens_per_second": {name: median(found) for name, found in speeds.items()},
        "all_rounds": speeds,
        "workers": group.num_workers,
        "threads_per_worker": torch.get_num_threads(),
        "device": device_name(group.device),
    }


def _our_step(
    config: Config, data_uri: str, data: PreparedData, group: Group, precision: str
) -> tuple[Step, Prepare]:
    train = config.train.model_copy(update={"precision": precision})
    config = config.model_copy(update={"train": train})
    translator = build_translator(config, data.vocabulary_size, group)
    optimizer = build_dense_optimizer(config, translator.transformer)
    output = build_output(config, translator, partial(read_counts, data, "target"))
    step = build_train_step(config, translator, output, optimizer)
    return step.run, step.prepare


def _steps(
    config: Config, data_uri: str, data: PreparedData, group: Group
) -> Iterator[StepBatches]:
    loader = Loader(
        data_uri,
        data.splits["train"].shards,
        batch_tokens=config.train.batch_tokens,
        seed=config.run.seed,
        rank=group.rank,
        num_workers=group.num_workers,
        accumulate=1,
    )
    return loader.steps(Position())


def _measure(
    step: Step, prepare: Prepare, steps: Iterator[StepBatches], count: int, group: Group
) -> float:
    """Target tokens/s over ``count`` steps.

    What a run's loader does in its thread, batches and their preparation, is done on the host
    before the clock starts.
    """
    work = [prepare(number, next(steps)).to(group.device) for number in range(1, count + 1)]
    gc.collect()
    barrier = torch.zeros(1, device=group.device)
    sum_over_workers(barrier, group)
    started = time.perf_counter()
    for number, (batches, following) in enumerate(zip_longest(work, work[1:]), start=1):
        step(number, batches, following)
    sum_over_workers(barrier, group)
    if group.device.type == "cuda":
        torch.cuda.synchronize()
    return sum(batches.global_tokens for batches in work) / (time.perf_counter() - started)

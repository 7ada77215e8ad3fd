"""What measurements on workers have in common: how they meet, and steps of a run's data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from dist_embed.config.schema import Config
from dist_embed.data.loader import Loader, Position, StepBatches
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import PreparedData
from dist_embed.observe.quiet import private_log_folder
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import Group

TIMEOUT_SECONDS = 900.0
# What the libraries have to say.
LOG_FOLDER = private_log_folder("bench")
Say = Callable[[str], None]
# Does of a step, by its number, what a run's loader does in its thread.
Prepare = Callable[[int, StepBatches], StepBatches]


def meet(group: Group) -> float:
    """Wait until every worker, and what it has asked of its GPU, has come here; returns the time.
    Collective.
    """
    sum_over_workers(torch.zeros(1, device=group.device), group)
    if group.device.type != "cpu":
        torch.cuda.synchronize(group.device)
    return time.perf_counter()


def as_it_is(number: int, work: StepBatches) -> StepBatches:
    """A `Prepare` of those who have nothing to prepare."""
    return work


def steps_of_data(
    config: Config, data: PreparedData, group: Group, *, accumulate: int
) -> Iterator[StepBatches]:
    """This worker's batches, as a configured run has them from its start."""
    loader = Loader(
        data.folder_uri,
        data.splits["train"].shards,
        index=index_of(data, "train"),
        batch_tokens=config.train.batch_tokens,
        seed=config.run.seed,
        rank=group.rank,
        num_workers=group.num_workers,
        accumulate=accumulate,
    )
    return loader.steps(Position())

"""How long a step with the exact output layer takes at least, before it is made. Free of torch: the
launching process asks.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

from dist_embed.config.schema import Config
from dist_embed.embedding.plan import shard_of
from dist_embed.errors import UserError
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.training.table_settings import table_settings

LONGEST_STEP_SECONDS = 60.0
# FLOP/s that matrix products do not exceed: what is refused takes longer than is said. A GPU: what
# is published of a B200, dense bf16. A thread of a CPU: over twice what one of an EPYC with
# AVX512-BF16 reached (docs/decisions/0033-search-among-many-words.md); ten times that with Intel's
# AMX, and with processors that we know less of.
GPU_RATE = 2.25e15
CPU_THREAD_RATE = {"usual": 2.5e11, "matrix units": 2.5e12}
# Of a step's token budget, that are target tokens: batches of before, at 512 workers, had 0.32.
LEAST_FILL = 0.3


def exact_step_seconds(config: Config, num_words: int, num_workers: int, rate: float) -> float:
    """The least that the exact output layer's products of one step take.

    Logits of all workers' tokens against a worker's rows, and the gradients of both: 6 FLOP for
    each token, row and value; 4 where the rows are not trained.

    Args:
        config: the run's.
        num_words: V of the output layer.
        num_workers: W.
        rate: FLOP/s of a worker.
    """
    rows = shard_of(num_words, 0, num_workers).physical_rows
    table = table_settings(config).get(TABLE_OF_ROLE[config.model.share_embeddings]["output"])
    flop = 4 if table and table.freeze else 6
    return LEAST_FILL * config.train.batch_tokens * rows * config.embedding.width * flop / rate


def worker_rate(
    device: Literal["cpu", "cuda"], threads: int, precision: str, root: Path = Path("/")
) -> float:
    """FLOP/s that a worker on this machine, or with a GPU anywhere, does not exceed."""
    if device == "cuda":
        return GPU_RATE
    kind = "matrix units"
    if platform.machine() in ("x86_64", "AMD64"):
        there = "amx_bf16" in (root / "proc/cpuinfo").read_text()
        kind = "matrix units" if there and precision != "fp32" else "usual"
    return threads * CPU_THREAD_RATE[kind]


def check_step(
    config: Config,
    num_words: int,
    num_workers: int,
    device: Literal["cpu", "cuda"],
    root: Path = Path("/"),
) -> None:
    """Refuse an exact output layer with which a step takes more than `LONGEST_STEP_SECONDS`.

    Raises UserError.
    """
    rate = worker_rate(device, threads_per_worker(config), config.train.precision, root)
    if why := why_refused(config, num_words, num_workers, rate):
        raise UserError(why)


def why_refused(config: Config, num_words: int, num_workers: int, rate: float) -> str:
    """What `check_step` says where a worker does not exceed ``rate`` FLOP/s; empty: nothing."""
    if config.model.output != "exact":
        return ""
    seconds = exact_step_seconds(config, num_words, num_workers, rate)
    if seconds <= LONGEST_STEP_SECONDS:
        return ""
    return (
        f"model.output: 'exact' is not allowed for {num_words:,} words with {num_workers} "
        f"workers: one step of train.batch_tokens={config.train.batch_tokens:,} would take "
        f"{seconds / 60:,.1f} minutes or more; with model.output=sampled its cost does not "
        "grow with the vocabulary"
    )


def threads_per_worker(config: Config, cores: int | None = None) -> int:
    """CPU threads of one worker on a machine with so many cores; None: on this one."""
    if config.cluster.threads_per_worker:
        return config.cluster.threads_per_worker
    local_workers = int(os.environ.get("LOCAL_WORLD_SIZE", config.cluster.max_workers))
    return max(1, (cores or len(os.sched_getaffinity(0))) // local_workers)

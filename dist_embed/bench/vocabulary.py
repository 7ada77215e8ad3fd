"""A whole training step by the size of the vocabulary, and beside plain PyTorch."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.bench.memory import peak_bytes
from dist_embed.bench.plain_model import plain_training_step
from dist_embed.bench.plain_sparse import SparseSampled
from dist_embed.bench.zipf import zipf
from dist_embed.cluster.local import launch_local
from dist_embed.config.errors import RunFailed, UserError
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.loader import Position, StepBatches, build_batch
from dist_embed.data.token_shards import TokenPairs
from dist_embed.embedding.memory import GIB
from dist_embed.observe.events import Event
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import Group, joined_group
from dist_embed.train.assemble import build_dense_optimizer, build_output, build_translator
from dist_embed.train.worker import build_train_step

TIMEOUT_SECONDS = 900.0
# What the libraries have to say.
LOG_FOLDER = Path(tempfile.gettempdir()) / f"dist_embed-{os.getuid()}" / "bench"
SENTENCE_TOKENS = 32  # with the end mark
WARM_UP_STEPS = 3
Kind = Literal["dist_embed, sampled", "nn.Embedding(sparse), sampled", "nn.Embedding, full softmax"]
SAMPLED: Kind = "dist_embed, sampled"
SPARSE: Kind = "nn.Embedding(sparse), sampled"
FULL: Kind = "nn.Embedding, full softmax"
Emit = Callable[[Event], None]
Step = Callable[[int, StepBatches], object]


@dataclass(frozen=True)
class Case:
    """One way to train one size.

    Attributes:
        kind: who does the step.
        num_words: V of source, target and output, each a table of its own.
        width: D, of tables and model.
        tokens: target tokens of each worker.
        num_samples: S.
    """

    kind: Kind
    num_words: int
    width: int
    tokens: int
    num_samples: int

    @property
    def table_bytes(self) -> int:
        """Bytes of the three tables with row-wise optimizer state, float32, all workers."""
        return 3 * 4 * self.num_words * (self.width + 1)


@dataclass
class Report:
    """What was found, and how it is shown.

    Attributes:
        num_workers: W.
        speeds: groups of cases that were timed in turns, each with its seconds per step by round.
        memory: each case with its peaks in bytes, or None where it failed.
    """

    num_workers: int
    speeds: list[list[tuple[Case, list[float]]]]
    memory: list[tuple[Case, dict[str, Any] | None]]

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Title, header and rows of each table."""
        for group in self.speeds:
            first = median(group[0][1])
            rows = [
                [case.kind, f"{case.num_words:,}", str(case.width), str(case.tokens),
                 f"{median(seconds) * 1e3:.1f}",
                 f"{min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}",
                 f"{median(seconds) / first:.2f}"]
                for case, seconds in group
            ]  # fmt: skip
            yield (
                "Time of a whole training step, in turns in the same processes:",
                ["", "words", "width", "tokens per worker", "ms per step", "range", "ratio"],
                rows,
            )
        rows = []
        for case, found in self.memory:
            row = [case.kind, f"{case.num_words:,}", str(case.width), str(case.tokens)]
            if found is None:
                rows.append([*row, "failed", "", "", ""])
                continue
            share = case.table_bytes / self.num_workers
            rows.append([
                *row, f"{share / GIB:.2f}", f"{found['built'] / GIB:.2f}",
                f"{found['trained'] / GIB:.2f}", f"{(1.1 * share) / GIB + 1:.2f}",
            ])  # fmt: skip
        yield (
            "Peak resident memory of the fullest worker, GiB:",
            ["", "words", "width", "tokens per worker", "tables / W", "built", "trained",
             "1.1 × tables / W + 1"],
            rows,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "workers": self.num_workers,
            "speeds": [
                [{"case": asdict(case), "seconds_per_step": found} for case, found in group]
                for group in self.speeds
            ],
            "memory": [{"case": asdict(case), "peaks": found} for case, found in self.memory],
        }


def vocabulary_report(
    words: list[int], widths: list[int], *, against: int, tokens: int, full_tokens: int,
    num_samples: int, num_workers: int, rounds: int, steps: int, say: Callable[[str], None],
) -> Report:  # fmt: skip
    """Time ``words`` at each of ``widths``, and at ``against`` words plain PyTorch beside us.

    Raises:
        UserError: fewer words than samples.
    """
    for num_words in (*words, *([against] if against else [])):
        if num_words <= num_samples:
            raise UserError(f"--samples: {num_samples} is not allowed with {num_words} words")

    def case(kind: Kind, num_words: int, width: int, of_tokens: int) -> Case:
        return Case(kind, num_words, width, of_tokens, num_samples)

    groups = [[case(SAMPLED, n, width, tokens) for n in words] for width in widths]
    if against:
        groups.append([case(k, against, widths[0], tokens) for k in (SAMPLED, SPARSE)])
        groups.append([case(k, against, widths[0], full_tokens) for k in (SAMPLED, FULL)])
    memory = [
        (one, measure_alone(one, num_workers=num_workers, steps=3, say=say))
        for one in dict.fromkeys(one for group in groups for one in group)
    ]
    failed = {one for one, found in memory if found is None}
    speeds = []
    for group in groups:
        alive = [one for one in group if one not in failed]
        found = measure_together(
            alive, num_workers=num_workers, rounds=rounds, steps=steps, say=say
        )
        speeds.append(list(zip(alive, found, strict=True)))
    return Report(num_workers, [group for group in speeds if group], memory)


def measure_together(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Callable[[str], None]
) -> list[list[float]]:
    """Seconds per step of each case, round by round, in turns in the same processes."""
    found: list[list[float]] = launch_local(
        _measure, (cases, rounds, steps), num_workers=num_workers,
        on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER),
    )["seconds"]  # fmt: skip
    return found


def measure_alone(
    case: Case, *, num_workers: int, steps: int, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Peak bytes of the fullest worker ``built`` and ``trained``, of processes that do nothing
    else; None where a worker fails, as for lack of memory.
    """
    try:
        found: dict[str, Any] = launch_local(
            _measure, ([case], 1, steps), num_workers=num_workers,
            on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER),
        )  # fmt: skip
    except RunFailed as exc:
        say(f"{case.kind}, {case.num_words:,} words: {str(exc).splitlines()[-1][:200]}")
        return None
    return {"built": found["built"], "trained": found["trained"], "bytes": found["before"]}


def _measure(cases: list[Case], rounds: int, steps: int, emit: Emit) -> dict[str, Any]:
    torch.set_num_threads(1)
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group("cpu", TIMEOUT_SECONDS) as group:
        before = peak_bytes()
        runs = [(case, step_of(case, group)) for case in cases]
        built = peak_bytes()
        work = [batches(case, group, WARM_UP_STEPS + steps) for case in cases]
        seconds: list[list[float]] = [[] for _ in cases]
        for (_, step), some in zip(runs, work, strict=True):
            _timed(step, some[:WARM_UP_STEPS], group)
        for number in range(rounds):
            for place, (case, step) in enumerate(runs):
                taken = _timed(step, work[place][WARM_UP_STEPS:], group)
                seconds[place].append(median(taken))
                if group.is_first:
                    text = f"round {number + 1}: {case.kind}, {case.num_words:,} words, width "
                    text += f"{case.width}, {case.tokens} tokens: {seconds[place][-1] * 1e3:.1f} ms"
                    emit({"kind": "line", "text": text})
        peaks = torch.tensor([before, built, peak_bytes()])
        torch.distributed.all_reduce(peaks, torch.distributed.ReduceOp.MAX)
        names = ("before", "built", "trained")
        return {"seconds": seconds, **dict(zip(names, peaks.tolist(), strict=True))}


def step_of(case: Case, group: Group) -> Step:
    """What runs one training step of the case. Collective."""
    config = case_config(case)
    if case.kind == SAMPLED:
        size = {"source": case.num_words, "target": case.num_words}
        translator = build_translator(config, size, group)
        output = build_output(config, translator, _no_counts)
        optimizer = build_dense_optimizer(config, translator.transformer)
        return build_train_step(config, translator, output, optimizer).run
    if case.kind == SPARSE:
        return SparseSampled(config, case.num_words, group).run
    return plain_training_step(config, case.num_words, case.num_words, group, bf16=False)


def case_config(case: Case) -> Config:
    """Two layers on either side, dropout off, no smoothing: what is not the tables is small."""
    return config_from_dict(
        {
            "run": {"uri": "/nowhere"},
            "data": {"synthetic": {}},
            "tokenizer": {"shared": False},
            "embedding": {"width": case.width},
            "model": {
                "width": case.width, "feed_forward": 4 * case.width, "encoder_layers": 2,
                "decoder_layers": 2, "dropout": 0.0, "share_embeddings": "none",
                "output": "sampled", "num_samples": case.num_samples,
            },
            "train": {"max_steps": 1000, "precision": "fp32"},
        }
    )  # fmt: skip


def batches(case: Case, group: Group, count: int) -> list[StepBatches]:
    """Steps of sentences of equal length whose words follow Zipf's law by rank."""
    sentences = case.tokens // SENTENCE_TOKENS
    length = SENTENCE_TOKENS - 1
    offsets = np.arange(sentences + 1, dtype=np.int64) * length
    found = []
    for number in range(count):
        draw = np.random.default_rng([number, group.rank])
        source, target = (zipf(draw, case.num_words, sentences * length) for _ in range(2))
        pairs = TokenPairs(source, offsets, target, offsets)
        counts = [[sentences * SENTENCE_TOKENS] * group.num_workers]
        found.append(StepBatches([build_batch(pairs, np.arange(sentences))], counts, Position()))
    return found


def _timed(step: Step, work: list[StepBatches], group: Group) -> list[float]:
    """Seconds of each step, until the slowest worker is done."""
    gc.collect()
    barrier = torch.zeros(1)
    taken = []
    for number, some in enumerate(work, start=1):
        sum_over_workers(barrier, group)
        started = time.perf_counter()
        step(number, some)
        sum_over_workers(barrier, group)
        taken.append(time.perf_counter() - started)
    return taken


def _no_counts() -> NDArray[np.int64]:
    raise AssertionError("the log-uniform sampler asks for none")

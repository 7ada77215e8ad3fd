"""Runs whose time and memory a plan is compared with, and that tell what a process takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Literal

from dist_embed.bench.vocabulary_cases import SENTENCE_TOKENS
from dist_embed.bench.workers import Say
from dist_embed.cluster.launch import launch
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.words_folder import write_words_folder
from dist_embed.observe.phase_names import PHASES, PhaseName, metric_of
from dist_embed.run.metrics import read_metrics
from dist_embed.storage import uri as storage
from dist_embed.training.tasks import Train

# Steps between two lines of metrics, of which the first, with the first step, does not count.
LOG_STEPS = 4
_SENTENCES = 8192
Output = Literal["exact", "sampled"]


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        output: of the output layer.
        num_words: V.
        width: D, of table and model.
        workers: W.
        batch_tokens: of all workers.
        steps: that are made.
        share: which tables there are: one for both sides and the output layer, or three.
        layers: on either side.
        accumulate: micro-batches of a step.
        clip_norm: 0: no clipping.
    """

    output: Output
    num_words: int
    width: int
    workers: int
    batch_tokens: int
    steps: int = 5 * LOG_STEPS
    share: Literal["all", "none"] = "all"
    layers: int = 2
    accumulate: int = 1
    clip_norm: float = 0.0

    def __str__(self) -> str:
        usual = {field.name: field.default for field in fields(self)}
        more = [
            f", {key}={getattr(self, key)}"
            for key in ("share", "layers", "accumulate", "clip_norm")
            if getattr(self, key) != usual[key]
        ]
        return (
            f"{self.output}, {self.num_words:,} words × {self.width}, {self.workers} workers, "
            f"{self.batch_tokens:,} tokens{''.join(more)}"
        )


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        step_seconds: from one step to the next: of a run's steps, and what it spends between them;
            median of its lines of metrics.
        phases: by name the seconds of a step; medians likewise, of worker 0.
        memory_bytes: the most that a worker held, resident.
    """

    step_seconds: float
    phases: dict[PhaseName, float]
    memory_bytes: int


class Runs:
    """Runs below a folder, on data that those with as many words share."""

    def __init__(self, folder: str, say: Say) -> None:
        self._folder = folder
        self._say = say
        self._number = 0

    def config(self, case: Case) -> Config:
        """Of a run of its own on the case's data, which are written where they are not there."""
        self._number += 1
        return case_config(
            case, storage.join(self._folder, f"run-{self._number}"), self._data(case.num_words)
        )

    def measured(self, case: Case) -> Measured:
        """Make a run of the case, which leaves nothing behind."""
        config = self.config(case)
        size = dict.fromkeys(("source", "target"), case.num_words)
        try:
            result = launch(
                Train(config.data.uri, sentences=_SENTENCES), config, vocabulary_size=size,
                word_tables=True, on_event=lambda event: None, launcher="local",
            )  # fmt: skip
            found = _of_metrics(read_metrics(config.run.uri), result.peak_memory_bytes)
        finally:
            storage.remove(config.run.uri)
        self._say(
            f"{case}: {1000 * found.step_seconds:.1f} ms a step, "
            f"{found.memory_bytes / 2**20:,.0f} MiB"
        )
        return found

    def _data(self, num_words: int) -> str:
        folder = storage.join(self._folder, f"data-{num_words}")
        if not Path(folder).exists():
            self._say(f"writing data with {num_words:,} words")
            size = dict.fromkeys(("source", "target"), num_words)
            write_words_folder(folder, size, sentences=_SENTENCES, length=SENTENCE_TOKENS - 1)
        return folder


def case_config(case: Case, run_uri: str, data_uri: str) -> Config:
    """The configuration of a case's run; nothing is validated, and saved once, at the end."""
    return config_from_dict(
        {
            "run": {"uri": run_uri},
            "data": {"uri": data_uri, "synthetic": {}},
            "tokenizer": {"shared": True, "vocab_size": case.num_words},
            "embedding": {"width": case.width},
            "model": {
                "width": case.width, "feed_forward": 4 * case.width,
                "encoder_layers": case.layers, "decoder_layers": case.layers,
                "share_embeddings": case.share, "output": case.output, "num_samples": 1024,
            },
            "train": {
                "max_steps": case.steps, "batch_tokens": case.batch_tokens, "log_every": LOG_STEPS,
                "accumulate": case.accumulate, "clip_norm": case.clip_norm,
            },
            "checkpoint": {"saving": "in_place", "every_steps": 0},
            "cluster": {"launcher": "local", "num_workers": case.workers, "device": "cpu",
                        "threads_per_worker": 1},
        }
    )  # fmt: skip


def _of_metrics(lines: list[dict[str, Any]], peak_bytes: int) -> Measured:
    steps = [line for line in lines if "step_seconds" in line]
    first, counted = steps[0]["step"], steps[1:]

    def of_phase(name: PhaseName) -> Iterator[float]:
        before = first
        for line in counted:
            yield line[metric_of(name)] / (line["step"] - before)
            before = line["step"]

    phases = {name: median(of_phase(name)) for name in PHASES}
    between = phases["agreement"] + phases["checkpoint stall"]
    return Measured(
        median(line["step_seconds"] for line in counted) + between,
        phases,
        max(peak_bytes, *(max(line["workers/memory_bytes"]) for line in steps)),
    )

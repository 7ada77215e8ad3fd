"""Folders of runs that were never trained: a configuration and what a test has them tell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dist_embed.config.load import config_from_dict, config_to_yaml
from dist_embed.run.metrics import METRICS_NAME, NEIGHBORS, SAMPLE_KEYS, SAMPLES


def told_run(folder: Path, lines: Iterable[dict[str, Any]], **sections: Any) -> str:
    """Write a run of 100 steps that has told these lines; returns its folder."""
    folder.mkdir(parents=True)
    values = {
        "run": {"uri": str(folder)}, "data": {"synthetic": {}, "uri": str(folder / "data")},
        "train": {"max_steps": 100}, **sections,
    }  # fmt: skip
    (folder / "config.yaml").write_text(config_to_yaml(config_from_dict(values)))
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / METRICS_NAME).write_text(text)
    return str(folder)


def step_line(step: int, *, made: int = 10, **others: Any) -> dict[str, Any]:
    """As a run tells of its steps, two workers'."""
    return {
        "step": step, "time": 1.7e9 + step, "loss": 5 / step, "nll": 4 / step, "epoch": 0,
        "tokens_per_second": 1000.0 + step, "step_seconds": 0.3, "steps": made,
        "gradient_norm": 1.5, "skipped_steps": 0,
        "phase/agreement": 0.01 * made, "phase/checkpoint_stall": 0.0,
        "phase/data_wait": 0.02 * made, "phase/encoder": 0.1 * made, "phase/decoder": 0.15 * made,
        "workers/own_seconds": [0.2 * made, 0.1 * made], "workers/rows_requested": [300, 100],
        "workers/memory_bytes": [2**30, 3 * 2**30],
    } | others  # fmt: skip


def validation_line(step: int) -> dict[str, Any]:
    """As a run tells of a validation."""
    return {
        "step": step, "time": 1.7e9 + step + 1, "validation_loss": 3 / step,
        "validation_perplexity": 2.0,
    }  # fmt: skip


def translation_line(step: int, text: str = "ein Wort", word: str = "word") -> dict[str, Any]:
    """As a run tells of a translation of the validation set."""
    return {
        "step": step, "time": 1.7e9 + step + 2, "validation_bleu": 0.3 * step,
        "validation_chrf": 0.5 * step, "scored_by": "way",
        SAMPLES: [dict(zip(SAMPLE_KEYS, (f"source {text}", f"reference {text}", f"{text} {step}"),
                           strict=True))],
        NEIGHBORS: {word: [[f"near {word}", 0.5]]},
    }  # fmt: skip


def whole_course() -> list[dict[str, Any]]:
    """Of a run that is complete."""
    lines = []
    for step in range(10, 101, 10):
        lines.append(step_line(step))
        if step % 50 == 0:
            lines += [validation_line(step), translation_line(step)]
    return lines

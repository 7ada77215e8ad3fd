"""A run's metrics, as its file has them by now, and the wait for more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dist_embed.run.metrics import read_metrics


def metrics(folder: Path | str, key: str = "loss") -> dict[int, float]:
    """By step; empty where there are none yet."""
    return {line["step"]: line[key] for line in read_metrics(str(folder)) if key in line}


def losses(folder: Path | str) -> list[float]:
    """Of each line that has one: of a step that was told twice, twice."""
    return [line["loss"] for line in read_metrics(str(folder)) if "loss" in line]


def until(reached: Callable[[], bool], seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.3)

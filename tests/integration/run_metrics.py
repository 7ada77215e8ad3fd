"""A run's metrics, as its file has them."""

from __future__ import annotations

from pathlib import Path

from dist_embed.run.metrics import read_metrics


def metrics(run: Path | str, key: str = "loss") -> dict[int, float]:
    """By step, as far as they have been written."""
    return {line["step"]: line[key] for line in read_metrics(str(run)) if key in line}

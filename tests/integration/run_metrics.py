"""A run's metrics, as its file has them."""

from __future__ import annotations

import json
from pathlib import Path


def metrics(folder: Path, key: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}

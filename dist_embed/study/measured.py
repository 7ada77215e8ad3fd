"""What a run's metrics say of its speed, memory and where its time went: columns of a result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from dist_embed.observe.phase_names import PHASES, metric_of
from dist_embed.run.history import OUTSIDE, steps_of


def figures_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns of `dist_embed.study.results` from the lines of ``metrics.jsonl``.

    The first log line has a run's warming up: times are of the others, where there are any. What
    no line says is left out.
    """
    logged = [line for line in lines if "step_seconds" in line]
    found: dict[str, Any] = {}
    for column, name in (("validation_loss", "validation_loss"), ("validation_bleu",) * 2):
        if told := [line[name] for line in lines if line.get(name) is not None]:
            found[column] = told[-1]
    if not logged:
        return found
    found |= {"steps": logged[-1]["step"], "training_loss": logged[-1].get("nll")}
    steps = steps_of(logged)
    timed = list(zip(logged, steps, strict=True))[1:] or list(zip(logged, steps, strict=True))
    seconds = [line["step_seconds"] for line, _ in timed]
    found["tokens_per_second"] = statistics.median(line["tokens_per_second"] for line, _ in timed)
    for column, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("max", 1.0)):
        found[f"step_seconds_{column}"] = float(np.quantile(seconds, share))
    told = [(line, count) for line, count in timed if "workers/own_seconds" in line]
    return found | (_by_phase(told) | _by_worker(told) if told else {})


def _by_phase(told: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    steps = sum(count for _, count in told)
    phases = {
        name: sum(line.get(metric_of(name), 0.0) for line, _ in told) / steps for name in PHASES
    }
    whole = _whole(told) / steps
    return {"phases": phases, "data_wait_share": phases["data wait"] / whole}


def _by_worker(told: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    # A run that goes on may have another number of workers: those of its end count.
    workers = len(told[-1][0]["workers/own_seconds"])
    told = [one for one in told if len(one[0]["workers/own_seconds"]) == workers]

    def of_workers(name: str) -> Any:
        return np.array([line[f"workers/{name}"] for line, _ in told], np.float64)

    steps, whole = sum(count for _, count in told), _whole(told)
    rows = of_workers("rows_requested").sum(axis=0) / steps
    own = of_workers("own_seconds").sum(axis=0)
    return {
        "exchange_share": max(0.0, 1.0 - float(own.mean()) / whole),
        "memory_bytes": [int(size) for size in of_workers("memory_bytes").max(axis=0)],
        "rows_requested": rows.tolist(),
        "rows_balance": float(rows.max() / rows.mean()) if rows.any() else 1.0,
    }


def _whole(told: Sequence[tuple[dict[str, Any], int]]) -> float:
    """Seconds of all steps."""
    outside = (line.get(metric_of(name), 0.0) for line, _ in told for name in OUTSIDE)
    return sum(line["step_seconds"] * count for line, count in told) + sum(outside)

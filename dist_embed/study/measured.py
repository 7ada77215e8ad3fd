"""What a run's metrics say of its speed, memory and where its time went: columns of a result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dist_embed.observe.phase_names import PHASES, PhaseName, metric_of
from dist_embed.run.history import Logged, mean_phases, with_steps
from dist_embed.run.metrics import figure, figures, is_number

_OF_WORKERS = ("own_seconds", "rows_requested", "memory_bytes")


def figures_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns of `dist_embed.study.results` from the lines of ``metrics.jsonl``.

    The first log line after each start has a run's warming up: times are of the others, where
    there are any. What no line says is left out.

    A step's time is that from one step to the next, as a plan has it: with the agreement before it
    and its share of all stalls of checkpoints, which a line's own ``step_seconds`` leaves out.
    """
    logged = with_steps(lines)
    found: dict[str, Any] = {}
    for column, name in (("validation_loss", "validation_loss"), ("validation_bleu",) * 2):
        if told := figures(lines, name):
            found[column] = told[-1]
    if not logged:
        return found
    last, _ = logged[-1]
    found |= {"steps": last["step"], "training_loss": figure(last, "nll")}
    timed = [one for one in logged[1:] if "resumed_at" not in one[0]] or logged
    stall = _sum(timed, "checkpoint stall") / sum(count for _, count in timed)
    seconds = [
        line["step_seconds"] + (figure(line, metric_of("agreement")) or 0.0) / count + stall
        for line, count in timed
    ]
    speeds = [
        speed * line["step_seconds"] / whole
        for (line, _), whole in zip(timed, seconds, strict=True)
        if (speed := figure(line, "tokens_per_second")) is not None
    ]
    if speeds:
        found["tokens_per_second"] = statistics.median(speeds)
    for column, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("max", 1.0)):
        found[f"step_seconds_{column}"] = float(np.quantile(seconds, share))
    complete = [one for one in timed if _tells_workers(one[0])]
    return found | (_by_phase(complete) | _by_worker(complete) if complete else {})


def _by_phase(told: Sequence[Logged]) -> dict[str, Any]:
    phases = mean_phases(told)
    return {"phases": phases, "data_wait_share": phases["data wait"] / sum(phases.values())}


def _by_worker(told: Sequence[Logged]) -> dict[str, Any]:
    # A run that goes on may have another number of workers: those of its end count.
    workers = len(told[-1][0]["workers/own_seconds"])
    told = [one for one in told if len(one[0]["workers/own_seconds"]) == workers]

    def of_workers(name: str) -> Any:
        return np.array([line[f"workers/{name}"] for line, _ in told], np.float64)

    steps = sum(count for _, count in told)
    whole = steps * sum(mean_phases(told).values())
    rows = of_workers("rows_requested").sum(axis=0) / steps
    own = of_workers("own_seconds").sum(axis=0)
    return {
        "exchange_share": max(0.0, 1.0 - float(own.mean()) / whole),
        "memory_bytes": [int(size) for size in of_workers("memory_bytes").max(axis=0)],
        "rows_requested": rows.tolist(),
        "requested_balance": balance(rows.tolist()),
    }


def _tells_workers(line: Mapping[str, Any]) -> bool:
    """Whether it has the phases, and each figure of each worker."""
    told: list[Any] = [line.get(f"workers/{name}") for name in _OF_WORKERS]
    return metric_of(PHASES[0]) in line and all(
        isinstance(one, list) and all(map(is_number, one)) and 0 < len(one) == len(told[0])
        for one in told
    )


def balance(of_workers: Sequence[float]) -> float:
    """The most by the mean; 1 where all are 0."""
    mean = statistics.mean(of_workers)
    return max(of_workers) / mean if mean else 1.0


def _sum(timed: Sequence[Logged], name: PhaseName) -> float:
    return sum(figure(line, metric_of(name)) or 0.0 for line, _ in timed)

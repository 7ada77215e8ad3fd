"""What a run under Ray tells Prometheus, with stand-ins for Ray's gauges."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.util import metrics

from dist_embed.cluster import ray_metrics

PROGRESS: dict[str, Any] = {
    "kind": "progress", "step": 50, "max_steps": 200, "loss": math.nan, "tokens_per_second": 12.5,
    "eta_seconds": 30.0,
    "workers": {
        "own_seconds": [1.5, 2.5], "rows_requested": [7, 8], "memory_bytes": [2**30, 2**31],
        "phases": {"data_wait": [0.25, 0.5], "lookup": [1.0, 2.0]},
    },
}  # fmt: skip


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """What Ray's gauges were set to, by name and tags."""
    found: dict[tuple[str, ...], float] = {}

    class Gauge(metrics.Gauge):
        def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
            assert tags is not None
            super().set(value, tags)  # refuses tags that it was not made with
            assert value is not None
            found[(self.info["name"], *tags.values())] = value

    monkeypatch.setattr(ray_metrics, "Gauge", Gauge)
    return found


def test_progress_becomes_gauges_of_the_run_and_of_each_worker(
    found: dict[tuple[str, ...], float],
) -> None:
    told: list[Any] = []
    emit = ray_metrics.also_as_gauges(told.append, "night")
    line = {"kind": "line", "text": "validated"}
    emit(line)
    assert found == {}
    emit(PROGRESS)
    assert told == [line, PROGRESS]
    assert math.isnan(found.pop(("dist_embed_loss", "night")))
    assert found == {
        ("dist_embed_step", "night"): 50.0,
        ("dist_embed_max_steps", "night"): 200.0,
        ("dist_embed_tokens_per_second", "night"): 12.5,
        ("dist_embed_eta_seconds", "night"): 30.0,
        ("dist_embed_own_seconds", "night", "0"): 1.5,
        ("dist_embed_own_seconds", "night", "1"): 2.5,
        ("dist_embed_rows_requested", "night", "0"): 7.0,
        ("dist_embed_rows_requested", "night", "1"): 8.0,
        ("dist_embed_memory_bytes", "night", "0"): 2.0**30,
        ("dist_embed_memory_bytes", "night", "1"): 2.0**31,
        ("dist_embed_phase_seconds", "night", "0", "data_wait"): 0.25,
        ("dist_embed_phase_seconds", "night", "1", "data_wait"): 0.5,
        ("dist_embed_phase_seconds", "night", "0", "lookup"): 1.0,
        ("dist_embed_phase_seconds", "night", "1", "lookup"): 2.0,
    }

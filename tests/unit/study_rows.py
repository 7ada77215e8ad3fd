"""Rows of a study's results, as a study of scaling writes them."""

from __future__ import annotations

from typing import Any


def scaling_rows() -> list[dict[str, Any]]:
    """Runs of 1, 2 and 4 workers, strong and weak, of two vocabularies; others that did not run."""
    rows = [
        _measured(workers, scaling, words)
        for scaling in ("strong", "weak")
        for words in (1000, 100_000)
        for workers in (1, 2, 4)
    ]
    others = [("failed", "out of memory <b>"), ("skipped", "does not fit"), ("waiting", None)]
    rows += [
        {"state": state, "reason": reason, "levels": {"workers": "8", "scaling": state}, "seed": 1}
        for state, reason in others
    ]
    rows += [
        _planned(workers) | {"state": "simulated", "planned_fits": workers > 1}
        for workers in (1, 8, 64, 4096)
    ]
    return rows


def _planned(workers: int, scaling: str = "strong", words: int = 1000) -> dict[str, Any]:
    levels = {"workers": str(workers), "scaling": scaling, "vocabulary": str(words)}
    return {
        "levels": levels, "scaling": scaling, "workers": workers, "target_words": words,
        "table_width": 64, "batch_tokens": 4096, "planned_machine": "8xh100",
        "planned_tokens_per_second": 900.0 * workers, "planned_efficiency": 0.9,
        "planned_step_seconds": 0.4 / workers, "planned_memory_bytes": 2**30 + 64 * words,
        "planned_phases": {"encoder": 0.1 / workers, "table backward": 0.1},
        "planned_exchange_bytes": 1e6, "planned_served_balance": 1.1,
        "planned_checkpoint_seconds": 3.0, "planned_bottleneck": "the exchange of vectors",
        "planned_fits": True, "planned_source": "data sheets", "uneven": workers > 64,
    }  # fmt: skip


def _measured(workers: int, scaling: str, words: int) -> dict[str, Any]:
    return _planned(workers, scaling, words) | {
        "name": f"{workers}", "state": "done", "seed": 1, "oversubscribed": workers > 2,
        "tokens_per_second": 1000.0 * workers**0.8, "step_seconds_p50": 0.5 / workers**0.8,
        "efficiency": None if workers > 2 else workers**-0.2, "efficiency_base": 1,
        "phases": {"encoder": 0.2 / workers, "dense backward": 0.3 / workers, "lookup": 0.02},
        "memory_bytes": [2**30 + 70 * words, 2**30], "validation_loss": 2.5, "device": "CPU",
        "cores": 2, "measures": {"bleu": 20.0 + workers},
    }  # fmt: skip

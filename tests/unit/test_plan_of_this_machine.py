"""A study's plan for this machine, beside the check before a run."""

from __future__ import annotations

import pytest

from dist_embed.study import estimate
from dist_embed.training.needs import host_bytes
from tests.unit.planned import configured


@pytest.mark.parametrize("native", [True, False])
def test_this_machine_is_planned_as_the_check_before_a_run_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(estimate, "has_native_bf16", lambda device: native)
    config = configured(
        cluster={"num_workers": 2, "launcher": "local", "device": "cpu"},
        train={"precision": "auto"},
    )
    expected = host_bytes(
        config, {"source": 1000, "target": 1000}, training=True, narrow_products=native, tier=None,
        word_tables=True, sentences=20_000,
    )  # fmt: skip
    assert estimate.Planner(None).estimate(config).plan.memory_bytes == expected

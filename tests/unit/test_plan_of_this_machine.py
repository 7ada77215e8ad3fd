"""A study's plan for this machine, beside the check before a run."""

from __future__ import annotations

import pytest

from dist_embed.errors import UserError
from dist_embed.planning import load_machine
from dist_embed.planning.machine import Products
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


@pytest.mark.parametrize("native", [True, False])
def test_measured_speeds_of_bfloat16_are_kept_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    full, half = (
        Products.model_validate({"type": dtype, "inner": 64, "gflops": gflops})
        for dtype, gflops in (("fp32", 40.0), ("bf16", 70.0))
    )
    usual = load_machine("cpu")
    found = estimate._products(usual.model_copy(update={"products": [full, half]}), narrow=native)
    assert found == ([full, half] if native else [full])
    as_full = full.model_copy(update={"type": "bf16"})
    found = estimate._products(usual.model_copy(update={"products": [full]}), narrow=native)
    assert found == ([full, as_full] if native else [full])


def test_a_plan_of_this_machine_says_whose_figures_are_which() -> None:
    found = estimate.Planner(None).estimate(configured(cluster={"device": "cpu"})).plan
    assert found.machine_source == (
        f"{load_machine('cpu').source}; cores and memory are this machine's"
    )


@pytest.mark.parametrize(("rate", "refused"), [(2.5e11, True), (2.5e12, False)])
def test_a_plan_refuses_what_the_run_would(
    monkeypatch: pytest.MonkeyPatch, rate: float, refused: bool
) -> None:
    """0.3 · 2.6 · 10⁹ tokens · 500 rows · 8 values · 6 FLOP: 75 s of a thread with 2.5 · 10¹¹."""
    asked: list[tuple[object, ...]] = []

    def told(*given: object) -> float:
        asked.append(given)
        return rate

    monkeypatch.setattr(estimate, "worker_rate", told)
    config = configured(
        cluster={"device": "cpu", "threads_per_worker": 1, "launcher": "local"},
        train={"batch_tokens": 2_600_000_000, "precision": "bf16"},
    )
    found = estimate.Planner(None).estimate(config).plan
    assert asked == [("cpu", 1, "bf16")]
    assert bool(found.refused) == refused
    # Another machine, of which it is not known: what would run somewhere is not skipped.
    assert not estimate.Planner("cpu").estimate(config).plan.refused


def test_a_machine_of_another_kind_than_the_runs_is_refused() -> None:
    said = "machine: '8xh100' is not allowed: it has 'cuda', and the runs are on 'cpu'"
    for device in ("cpu", "auto"):  # there is no GPU here
        config = configured(cluster={"device": device, "launcher": "local"})
        with pytest.raises(UserError, match=said):
            estimate.Planner("8xh100").estimate(config)

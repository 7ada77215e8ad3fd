from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.optim.schedule import Schedule
from dist_embed.optim.settings import Shape

SHAPES: list[Shape] = ["constant", "inverse_sqrt", "cosine", "linear"]


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_rises_linearly_to_the_peak(shape: Shape) -> None:
    schedule = Schedule(0.4, shape, warmup_steps=4, max_steps=20)
    assert [schedule.rate(step) for step in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("shape", SHAPES)
def test_without_warm_up_the_first_step_has_the_peak(shape: Shape) -> None:
    assert Schedule(0.4, shape, warmup_steps=0, max_steps=20).rate(1) == 0.4


def test_shapes_after_warm_up() -> None:
    def rates(shape: Shape, *steps: int) -> list[float]:
        schedule = Schedule(1.0, shape, warmup_steps=4, max_steps=24)
        return [schedule.rate(step) for step in steps]

    assert rates("constant", 5, 24) == [1.0, 1.0]
    assert rates("inverse_sqrt", 16, 64) == pytest.approx([0.5, 0.25])
    assert rates("linear", 9, 14, 24) == pytest.approx([0.75, 0.5, 0.0])
    assert rates("cosine", 9, 14, 24) == pytest.approx(
        [(1 + math.cos(math.pi / 4)) / 2, 0.5, 0.0], abs=1e-12
    )


@given(
    st.sampled_from(SHAPES),
    st.integers(0, 50),
    st.integers(1, 60),
    st.integers(1, 120),
)
def test_rates_stay_between_zero_and_peak_and_never_jump_up(
    shape: Shape, warmup: int, max_steps: int, step: int
) -> None:
    schedule = Schedule(2.0, shape, warmup, max_steps)
    now, then = schedule.rate(step), schedule.rate(step + 1)
    assert 0 <= now <= 2.0
    if step >= max(1, warmup):
        assert then <= now + 1e-12
    else:
        assert then > now

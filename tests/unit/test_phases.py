"""What a step's phases take, by the host's clock and by a device's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dist_embed.observe.phases import (
    PHASES,
    Phases,
    note_rows,
    phase,
    phase_now,
    waiting,
    waiting_after,
    waiting_until,
)

CPU = torch.device("cpu")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the host's clock go on by so many seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_the_phase_that_a_step_is_in_is_known_and_how_many_there_were() -> None:
    recorder = Phases(CPU)
    found = []
    for _ in range(2):
        with recorder.recorded():
            with phase("lookup"), waiting():
                found.append(phase_now())
            found.append(phase_now())
    with phase("encoder"):
        found.append(phase_now())
    assert found == [(1, "lookup"), (1, ""), (2, "lookup"), (2, ""), (0, "")]


def test_phases_are_summed_and_waits_are_no_work_of_ones_own(
    passes: Callable[[float], None],
) -> None:
    recorder = Phases(CPU)
    for _ in range(2):
        with recorder.recorded():
            with phase("lookup"):
                passes(3.0)
                with waiting():
                    passes(5.0)
            with phase("encoder"):
                passes(1.0)
            passes(0.5)
            note_rows(7)
    spent = recorder.take()
    assert spent.phases == dict.fromkeys(PHASES, 0.0) | {"lookup": 16.0, "encoder": 2.0}
    assert (spent.seconds, spent.own_seconds, spent.rows_requested) == (19.0, 9.0, 14)
    again = recorder.take()
    assert (again.seconds, again.own_seconds, again.rows_requested) == (0.0, 0.0, 0)
    assert not any(again.phases.values())


def test_outside_of_steps_nothing_counts(passes: Callable[[float], None]) -> None:
    recorder = Phases(CPU)
    leaf = torch.ones(2, requires_grad=True)
    with recorder.recorded():
        pass
    with phase("lookup"), waiting(), waiting_after([leaf]), waiting_until([]):
        note_rows(3)
        passes(4.0)
    assert recorder.take().seconds == recorder.take().rows_requested == 0


def test_a_step_that_fails_leaves_no_recorder_behind(passes: Callable[[float], None]) -> None:
    recorder = Phases(CPU)
    with pytest.raises(ZeroDivisionError), recorder.recorded(), phase("output"):
        passes(2.0 / 0)
    with phase("output"):
        passes(9.0)
    assert recorder.take().phases["output"] == 0.0


class Slow(torch.autograd.Function):
    """Nothing, whose backward takes 7 seconds."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, passes: Callable[[float], None]) -> torch.Tensor:
        ctx.passes = passes
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.passes(7.0)
        return gradients[0], None


def test_what_comes_behind_the_last_gradient_of_a_backward_is_a_wait(
    passes: Callable[[float], None],
) -> None:
    recorder = Phases(CPU)
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    frozen = torch.ones(2)
    with recorder.recorded(), phase("dense backward"), waiting_after([first, second, frozen]):
        (Slow.apply(first, passes) + Slow.apply(second, passes)).sum().backward()
        passes(4.0)  # as DDP does when all gradients are there
    spent = recorder.take()
    assert (spent.seconds, spent.own_seconds) == (18.0, 14.0)
    with recorder.recorded(), phase("dense backward"), waiting_after([frozen]):
        passes(2.0)
    (first * 2).sum().backward()  # nothing is left on the leaves
    assert recorder.take().own_seconds == 2.0


def test_what_comes_before_a_node_of_a_backward_is_a_wait(
    passes: Callable[[float], None],
) -> None:
    recorder = Phases(CPU)
    leaf = torch.ones(2, requires_grad=True)
    here = Slow.apply(leaf, passes)
    there = Slow.apply(here, passes)
    with recorder.recorded(), waiting_until([here.grad_fn]):
        there.sum().backward()
    spent = recorder.take()
    assert (spent.seconds, spent.own_seconds) == (14.0, 7.0)


def test_a_backward_that_fails_leaves_nothing_on_leaves_and_nodes(
    passes: Callable[[float], None],
) -> None:
    recorder = Phases(CPU)
    leaf = torch.ones(2, requires_grad=True)
    node = Slow.apply(leaf, passes)
    for waits in (recorder.waiting_after([leaf]), recorder.waiting_until([node.grad_fn])):
        with pytest.raises(ZeroDivisionError), waits:
            raise ZeroDivisionError
    assert not leaf._post_accumulate_grad_hooks
    passes(3.0)
    node.sum().backward()
    assert recorder._sums.take()["waiting for workers"] == 0.0


class Event:
    """What is recorded in a device's stream; one that is not there could not be waited for."""

    made = 0
    passed = 0  # how far the device has come
    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        Event.made += 1

    def record(self) -> None:
        Event.recorded += 1
        self.at = Event.recorded

    def query(self) -> bool:
        return self.at <= Event.passed

    def elapsed_time(self, other: Event) -> float:
        assert self.query()
        assert other.query()
        return 1000.0 * (other.at - self.at)


def test_a_device_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    recorder = Phases(torch.device("cuda", 0))

    def step() -> None:
        with recorder.recorded(), phase("encoder"), waiting():
            pass

    step()  # six events: step, encoder, wait, and their ends
    assert recorder.take().seconds == 0.0
    Event.passed = 5  # the step's own end has not been passed
    step()
    spent = recorder.take()
    assert (spent.phases["encoder"], spent.seconds) == (3.0, 0.0)
    Event.passed = 12
    made = Event.made
    for _ in range(5):
        step()
        Event.passed = Event.recorded
    spent = recorder.take()
    assert spent.phases["encoder"] == 6 * 3.0  # one of before too
    assert Event.made <= made + 6  # they are used again


def test_phases_have_their_names_in_a_trace(tmp_path: Path) -> None:
    recorder = Phases(CPU)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with recorder.recorded(), phase("lookup"):
            torch.ones(2)
        recorder.annotate = True
        with recorder.recorded(), phase("decoder"), waiting():
            torch.ones(2)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    named = {one["name"] for one in events if one.get("cat") == "user_annotation"}
    assert {"step", "decoder", "waiting for workers"} <= named
    assert "lookup" not in named

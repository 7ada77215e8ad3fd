"""Steps of a configuration under PyTorch's profiler."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.bench import phase_cost, step_profile, workers
from dist_embed.bench.tasks import PhaseCost, ProfileSteps
from dist_embed.bench.trace import TraceFigures
from dist_embed.config.load import config_from_dict
from dist_embed.data.loader import StepBatches
from dist_embed.observe import phases
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.group import Group
from dist_embed.training.step import PreparedStep, TrainStep
from dist_embed.training.worker import Context
from tests.unit.small_corpus import Prepared


def context_of(prepared: Prepared, group: Group) -> Context:
    config = config_from_dict({
        "run": {"uri": "/nowhere", "seed": 5}, "data": {"synthetic": {}, "uri": prepared.uri},
        "embedding": {"width": 8},
        "model": {"width": 8, "feed_forward": 8, "heads": 2, "encoder_layers": 1,
                  "decoder_layers": 1},
        "train": {"max_steps": 3, "batch_tokens": 300, "accumulate": 2, "precision": "fp32"},
    })  # fmt: skip
    return Context(config, group, silent_reporter())


def test_steps_are_timed_recorded_and_watched_in_turn(
    prepared: Prepared, alone: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course: list[Any] = []
    run, prepare = TrainStep.run, TrainStep.prepare

    def running(self: TrainStep, step: int, work: StepBatches, following: Any = None) -> Any:
        assert isinstance(work, PreparedStep)
        assert following.step == step + 1  # no step is the last
        assert len(work.batches) == 2  # as the configuration accumulates
        course.append(step)
        return run(self, step, work, following)

    def preparing(self: TrainStep, step: int, work: StepBatches) -> PreparedStep:
        assert not course  # before the clock starts
        return prepare(self, step, work)

    clock = iter([10.0, 16.0, 20.0, 30.0])

    def meeting(group: Group) -> float:
        course.append("meet")
        return next(clock)

    monkeypatch.setattr(TrainStep, "run", running)
    monkeypatch.setattr(TrainStep, "prepare", preparing)
    monkeypatch.setattr(step_profile, "meet", meeting)
    trace = tmp_path / "trace.json.gz"
    found = step_profile.step_task(context_of(prepared, alone), ProfileSteps(3, str(trace)))
    all_once, timed, begun = [*range(1, 10)], [6, 7, 8], [4, 5]
    measured = [*begun, "meet", *timed, "meet"]  # once by the clock, once recorded
    assert course == [*all_once, *measured, *measured, 9]
    assert (found["seconds_per_step"], found["steps"], found["workers"]) == (2.0, 3, 1)
    assert 150 < found["tokens_per_step"] <= 300
    assert 0 < found["seconds_per_step_recorded"] < 60
    assert found["trace"] == str(trace)
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert found["phases"]["encoder"] > 0
    assert 0 < found["own_seconds_per_step"] < 60
    on_host = {entry["name"]: entry for entry in found["on_host"]}
    assert on_host["aten::_fused_adamw_"]["calls"] == 2.0  # matrices and vectors
    assert sum(one["seconds"] for one in found["on_host"]) < found["seconds_per_step_recorded"]
    assert not found["on_cuda"]
    assert found["on_device"] == found["waits"] == []
    assert found["device_busy_seconds"] is found["device_idle_share"] is None


def test_recording_is_weighed_against_not_recording_in_turns(
    prepared: Prepared, alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    course: list[str] = []
    monkeypatch.setattr(phase_cost, "meet", lambda group: len(course) and float(clock[len(course)]))
    run = TrainStep.run

    def running(self: TrainStep, *args: Any) -> Any:
        course.append("on" if phases._current else "off")
        return run(self, *args)

    clock = [0.0]
    for kind in "on", "off", "on", "on", "off":  # of each two steps are timed
        clock += [clock[-1], *(clock[-1] + n * (3.0 if kind == "on" else 2.0) for n in (1, 2))]
    monkeypatch.setattr(TrainStep, "run", running)
    found = phase_cost.phase_cost_task(context_of(prepared, alone), PhaseCost(2, 2))
    # The first step of each is not timed, nor recorded.
    on, off = ["off", "on", "on"], ["off", "off", "off"]
    assert course == on + off + on + on + off
    assert found["seconds_recorded"] == [3.0, 3.0]
    assert found["seconds_not_recorded"] == [2.0, 2.0]
    assert (found["share"], found["steps"], found["workers"]) == (0.5, 2, 1)


def test_idleness_is_that_of_steps_which_are_not_recorded(
    prepared: Prepared, alone: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = TraceFigures(2, 3.0, 1.5, [], [], [])
    monkeypatch.setattr(step_profile, "read_trace", lambda path: figures)
    asked = ProfileSteps(2, str(tmp_path / "trace.json.gz"))
    for wall, idle in ((4.0, 0.25), (2.0, 0.0)):
        clock = iter([10.0, 10.0 + wall, 0.0, 0.0])
        monkeypatch.setattr(step_profile, "meet", lambda group, clock=clock: next(clock))
        found = step_profile.step_task(context_of(prepared, alone), asked)
        assert (found["device_busy_seconds"], found["seconds_per_step_recorded"]) == (1.5, 3.0)
        assert found["device_idle_share"] == idle


def test_the_device_is_waited_for_where_workers_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch, "zeros", lambda size, device: device)
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        workers.meet(Group(0, 1, 1, device, None))  # type: ignore[arg-type]
    assert waited == [torch.device("cuda", 0)]

"""Steps that are recorded: a trace of each worker, which Perfetto opens."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.config.load import config_from_dict
from dist_embed.observe.events import Reporter
from dist_embed.observe.phases import PHASES, WAITING
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.run.metrics import MetricsLog
from dist_embed.storage import uri as storage
from dist_embed.training import step_traces
from dist_embed.training.step_traces import StepTraces
from dist_embed.training.tasks import Train
from dist_embed.training.worker import Context
from tests.distributed.configured import DATA, Values, merged
from tests.distributed.pool import WorkerPool

SMALL: Values = {
    "run": {"seed": 11}, "embedding": {"width": 8},
    "model": {"width": 8, "feed_forward": 12, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
              "share_embeddings": "none"},
    "train": {"max_steps": 5, "batch_tokens": 60, "precision": "fp32"},
    "cluster": {"device": "cpu", "num_workers": 2, "launcher": "local"},
}  # fmt: skip


def trained_where_one_cannot_record(group: Group, *arguments: Any) -> list[str]:
    """What was said where the last worker's profiler does not start."""
    with pytest.MonkeyPatch.context() as patch:
        if group.rank == group.num_workers - 1:
            patch.setattr(step_traces, "activities_on", lambda device: 1 / 0)
        return trained(group, *arguments)[0]


def trained(
    group: Group, values: Values, profile: tuple[int, int] | None, steps: int
) -> tuple[list[str], bytes]:
    """What was said of traces, and this worker's."""
    lines: list[str] = []
    reporter = Reporter(lambda event: lines.append(event.get("text", "")))
    config = config_from_dict(merged(values, {"train": {"max_steps": steps}}))
    Train(profile=profile).function()(Context(config, group, reporter))
    trace = f"{config.run.uri}/profile/worker-{group.rank}.json.gz"
    said = [line for line in lines if "recorded" in line]
    return said, storage.read_bytes(trace) if storage.exists(trace) else b""


def steps_in(trace: bytes) -> tuple[int, set[str]]:
    """How many steps a trace has, and what else is named in it."""
    events: list[dict[str, Any]] = json.loads(gzip.decompress(trace))["traceEvents"]
    assert all(one["dur"] >= 0 for one in events if one["ph"] == "X")
    names = [one["name"] for one in events if one.get("cat") == "user_annotation"]
    return names.count("step"), set(names)


@pytest.fixture
def values(data_uri: str, tmp_path: Path) -> Values:
    return merged(DATA, SMALL, {"data": {"uri": data_uri}, "run": {"uri": str(tmp_path)}})


def test_the_steps_that_are_asked_for_are_recorded_with_their_phases_on_every_worker(
    workers: WorkerPool, values: Values, tmp_path: Path
) -> None:
    said = workers.run(2, trained, values, (2, 4), 5)
    for rank in (0, 1):
        steps, names = steps_in(said[rank][1])
        assert steps == 3
        assert {*PHASES, WAITING} <= names
    first = tmp_path / "profile/worker-0.json.gz"
    assert said[0][0] == [
        f"steps 2 to 4 recorded, for ui.perfetto.dev: {first}, and so for every worker"
    ]


def test_a_run_that_goes_on_records_what_is_left_and_one_that_ends_what_there_is(
    workers: WorkerPool, values: Values
) -> None:
    workers.run(2, trained, values, None, 2)
    said = workers.run(2, trained, values, (2, 9), 4)
    assert said[0][0][0].startswith("steps 3 to 4 recorded")
    assert steps_in(said[1][1])[0] == 2
    assert workers.run(2, trained, values, (2, 4), 5)[0][0] == []


def test_of_a_run_at_a_url_too(workers: WorkerPool, values: Values) -> None:
    at_a_url = merged(values, {"run": {"uri": f"memory://traces-{uuid.uuid4().hex}"}})
    ((said, trace),) = workers.run(1, trained, at_a_url, (1, 1), 2)
    assert said[0].startswith("steps 1 to 1 recorded")
    assert steps_in(trace)[0] == 1


def test_traces_that_cannot_be_written_do_not_end_training(
    workers: WorkerPool, values: Values, tmp_path: Path
) -> None:
    (tmp_path / "profile").write_text("a file where a folder is to be")
    said = workers.run(2, trained, values, (2, 3), 4)
    (line,) = said[0][0]
    assert "steps 2 to 3 recorded, but the traces of 2 of 2 workers could not be written" in line
    assert str(tmp_path) in line


def test_a_worker_that_cannot_record_does_not_end_training(
    workers: WorkerPool, values: Values
) -> None:
    ((line,), _) = workers.run(2, trained_where_one_cannot_record, values, (2, 3), 4)
    assert "the traces of 1 of 2 workers could not be written; worker 1: " in line
    assert "division by zero" in line


def trained_where_metrics_cannot_be_kept(group: Group, *arguments: Any) -> list[str]:
    """What was said where worker 0's metrics fail at their end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "__exit__", lambda *_: 1 / 0)
        try:
            return trained(group, *arguments)[0]
        except ZeroDivisionError:
            with all_or_none(group):  # as the others do at the end of a training
                return []


def test_traces_are_written_before_metrics_can_fail_on_worker_0_alone(
    workers: WorkerPool, values: Values, tmp_path: Path
) -> None:
    said = workers.run(2, trained_where_metrics_cannot_be_kept, values, (2, 9), 3)
    assert said[0] == []
    assert said[1][0].startswith("steps 2 to 3 recorded")
    assert len(list((tmp_path / "profile").iterdir())) == 2


def test_the_error_that_ends_a_training_is_told_whatever_the_profiler_says(tmp_path: Path) -> None:
    class Fails:
        def stop(self) -> None:
            raise RuntimeError("the profiler")

    alone = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    traces = StepTraces(1, 2, str(tmp_path), alone, print)
    traces._profiler = Fails()  # type: ignore[assignment]
    with pytest.raises(OSError, match="the training"), traces:
        raise OSError("the training")

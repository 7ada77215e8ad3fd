"""A worker that holds up a run is named, with what it does; what may take long is no hang."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

import dist_embed as api
from dist_embed.cluster.local import launch_local
from dist_embed.config.schema import Config
from dist_embed.errors import RunFailed
from dist_embed.observe.events import Emit
from dist_embed.training import train as training
from dist_embed.training.results import TrainResult
from dist_embed.training.step import PreparedStep, TrainStep
from dist_embed.training.tasks import Train
from dist_embed.training.worker import run_worker

SECONDS = 5.0


def _late(
    function: Callable[..., Any], at_call: int, seconds: float = SECONDS
) -> Callable[..., Any]:
    """The same, but late once."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call:
            time.sleep(seconds)
        return function(*arguments, **options)

    return call


def _work(task: Train, config: Config, late: str, emit: Emit) -> TrainResult:
    """A worker; number 1 is late in a step, or in a validation."""
    if os.environ["RANK"] == "1":
        if late == "step":
            TrainStep.run = _late(TrainStep.run, 5)  # type: ignore[method-assign]
        else:
            training.exact_loss = _late(training.exact_loss, 1)
    return run_worker(task, config, emit)


@pytest.mark.parametrize("late", ["step", pytest.param("validation", marks=pytest.mark.heavy)])
def test_who_sleeps_in_a_step_is_named_and_nobody_else(config: str, late: str) -> None:
    loaded = api.load_config(config, {"cluster.hang_seconds": 1.0})
    data = api.prepare(loaded)
    told: list[str] = []

    result: TrainResult = launch_local(
        _work, (Train(data.folder_uri), loaded, late), num_workers=2, log_folder="",
        on_event=lambda event: told.append(event.get("text", "")),
    )  # fmt: skip
    assert result.steps == 8  # it went on
    # On a busy machine more may take long than this.
    hangs = [text for text in told if "time.sleep(seconds)" in text]
    if late == "validation":
        assert hangs == []
        return
    (text,) = hangs
    assert text.startswith("worker 1 makes no progress in step 5; it has been here since ")
    assert not [text for text in told if text.startswith("worker 0 makes no progress in step 5")]


def _work_alone(task: Train, config: Config, emit: Emit) -> TrainResult:
    """A worker that stands still while it takes the data of a step."""
    PreparedStep.to = _late(PreparedStep.to, 5, 600.0)  # type: ignore[method-assign]
    return run_worker(task, config, emit)


def test_a_worker_alone_that_stands_still_ends_with_its_stack(config: str) -> None:
    """As it waits for nobody, nothing else would end it."""
    loaded = api.load_config(config, {"cluster.hang_seconds": 60.0, "cluster.timeout_seconds": 3.0})
    data = api.prepare(loaded)
    with pytest.raises(RunFailed) as told:
        launch_local(
            _work_alone, (Train(data.folder_uri), loaded), num_workers=1, log_folder="LOGS",
            on_event=lambda event: None,
        )  # fmt: skip
    assert re.search(
        r"^worker 0 failed:\nTraceback .*time\.sleep\(seconds\)\n.*Hangs: no progress for 3 s "
        r"\(cluster\.timeout_seconds\) in step \d, data wait\n\(worker logs: LOGS\)$",
        str(told.value), re.DOTALL,
    ), told.value  # fmt: skip

"""What a run may not end well with: values that are not finite, a folder that is gone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint.manifest import METRIC
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.data.loader import Position, StepBatches
from dist_embed.errors import UserError
from dist_embed.observe.events import Reporter
from dist_embed.parallel.group import Group
from dist_embed.run.folder import CONFIG_NAME, RunFolder
from dist_embed.storage import uri as storage
from dist_embed.training import saving
from dist_embed.training.loop import Hooks, train_loop
from dist_embed.training.saving import is_finite
from dist_embed.training.settings import TrainSection
from dist_embed.training.step import StepResult

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]
STEPS = 6


class Run:
    """A loop whose steps, loader and saver do nothing but tell what they were asked for."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, float | None]] = []
        self.saved_step = 0
        self.lines: list[str] = []
        self.has_ended = self.may_hang = False
        self.step_under_way = None
        self.at_step: Callable[[int], None] = lambda step: None
        self.weight = torch.zeros(3, 2)
        self.state = TrainingState(
            ONE, 0, {"table.t.weight": LiveTensor(self.weight, 0, 3, replicated=False)},
            scalars={"position": Position().to_dict(), "skipped_steps": 0},
        )  # fmt: skip

    def prefetched(self, start: Position, prepare: object) -> Iterator[StepBatches]:
        while True:
            yield StepBatches([], [], start)

    def run(self, step: int, work: object, following: object) -> StepResult:
        self.at_step(step)
        return StepResult(1.0, 1.0, 10, skipped=False, gradient_norm=None)

    def save(self, state: TrainingState, check: Callable[[], None]) -> None:
        state.before_reading()
        check()
        self.saved.append((state.step, state.scalars.get(METRIC)))
        self.saved_step = state.step

    def wait(self, limit: float | None = None) -> None: ...
    def require(self, step: int) -> None: ...
    def close(self) -> None: ...

    def train(self, validate: Callable[[], float] | None = None, **hooks: Any) -> bool:
        me: Any = self
        settings = TrainSection(max_steps=STEPS, log_every=1, evaluate_every=2, max_skipped_steps=3)
        return train_loop(
            self.state, me, me, settings, CheckpointSection(every_steps=2, drain_seconds=1.0),
            Hooks(validate, None, **hooks), me,
            reporter=Reporter(lambda event: self.lines.append(str(event.get("text")))),
            metrics=None,
        )  # fmt: skip


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("bad_step", [4, STEPS])
def test_a_validation_loss_that_is_not_finite_ends_the_run_unsaved(
    loss: float, bad_step: int
) -> None:
    run = Run()
    with pytest.raises(UserError) as told:
        run.train(lambda: loss if run.state.step == bad_step else 2.0 + run.state.step)
    assert run.saved == [(step, 2.0 + step) for step in range(2, bad_step, 2)]
    assert f"step {bad_step}: the validation loss is {loss}" in str(told.value)
    assert f"the newest checkpoint is that of step {bad_step - 2}" in str(told.value)
    assert "embedding.learning_rate" in str(told.value)
    assert run.lines[-1].startswith(f"step {bad_step}: validation loss {loss}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_never_saved(value: float) -> None:
    run = Run()

    def spoil(step: int) -> None:
        if step == 3:
            run.weight[2, 1] = value

    run.at_step = spoil
    with pytest.raises(UserError, match=r"step 4: table\.t\.weight holds values that are not f"):
        run.train(lambda: 1.0)
    assert run.saved == [(2, 1.0)]


def test_newest_values_are_looked_at() -> None:
    run = Run()
    run.state.before_reading = lambda: run.weight.fill_(math.nan)  # from a cache
    with pytest.raises(UserError, match="step 2: table"):
        run.train()


def test_the_values_of_a_run_that_is_asked_to_stop_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    monkeypatch.setattr(saving, "stop_requested", lambda: run.state.step == 3)
    run.at_step = lambda step: run.weight.fill_(math.nan) if step == 3 else None  # type: ignore[assignment,return-value]
    with pytest.raises(UserError, match="step 3: table"):
        run.train()
    assert run.saved == [(2, None)]


def test_what_speaks_against_saving_ends_the_run() -> None:
    run = Run()

    def look() -> None:
        if run.state.step == 4:
            raise UserError("the folder is gone")

    with pytest.raises(UserError, match="the folder is gone"):
        run.train(before_save=look)
    assert [step for step, _ in run.saved] == [2]
    assert not Run().train(before_save=lambda: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_value_is_found_wherever_it_is(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_BLOCK", 7)
    values = torch.full((6, 5), torch.finfo(dtype).max, dtype=dtype)  # whose sum overflows
    assert is_finite(values)
    for i in range(6):
        for bad in (math.nan, math.inf, -math.inf):
            spoilt = values.clone()
            spoilt[i, i % 5] = bad
            assert not is_finite(spoilt)
            assert not is_finite(spoilt.t())  # not contiguous
    assert is_finite(torch.tensor(3.0))
    assert not is_finite(torch.tensor(math.nan))
    assert is_finite(torch.arange(5))
    assert is_finite(torch.empty(0, 4))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    run = tmp_path / "run"
    (run / "checkpoints/manifests").mkdir(parents=True)
    (run / "checkpoints/manifests/step-000000006-0.manifest").write_bytes(b"")
    (run / CONFIG_NAME).write_text("")
    return str(run)


def test_a_folder_that_stays_is_well(uri: str) -> None:
    folder = RunFolder(uri)
    folder.check()
    folder.check_end(6)
    folder.check_end(0)  # stopped before its first step


def test_a_folder_that_was_removed_moved_or_replaced_is_missed(uri: str) -> None:
    folder = RunFolder(uri)
    kept = Path(uri).rename(f"{uri}-kept")
    with pytest.raises(UserError, match=rf"{uri} was removed, moved or replaced while"):
        folder.check()
    shutil.copytree(kept, uri)
    with pytest.raises(UserError, match="was removed, moved or replaced"):
        folder.check_end(6)
    shutil.rmtree(uri)
    kept.rename(uri)
    folder.check()


@pytest.mark.parametrize(
    ("name", "gone"),
    [(CONFIG_NAME, "config.yaml"), ("checkpoints", "the checkpoint of step 6")],
)
def test_what_a_run_has_written_is_there_at_its_end(uri: str, name: str, gone: str) -> None:
    folder = RunFolder(uri)
    folder.check_end(6)
    storage.remove(storage.join(uri, name))
    with pytest.raises(UserError, match=f"{uri} lacks {gone}, written by this run"):
        folder.check_end(6)


def test_a_run_at_a_url_is_looked_after_too() -> None:
    uri = "memory://end-of-run/run"
    storage.write_text(f"{uri}/{CONFIG_NAME}", "")
    folder = RunFolder(uri)
    folder.check()
    with pytest.raises(UserError, match="lacks the checkpoint of step 6"):
        folder.check_end(6)
    storage.write_bytes(f"{uri}/checkpoints/manifests/step-000000006-0.manifest", b"")
    folder.check_end(6)


def test_a_run_without_any_metric_has_none_to_be_best_by() -> None:
    run = Run()
    assert not run.train(None)
    assert run.saved == [(2, None), (4, None), (6, None)]

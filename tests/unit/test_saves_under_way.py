"""The training loop and a real saver, whose store is slow: training goes on meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dist_embed.checkpoint import saver as saver_module
from dist_embed.checkpoint import write
from dist_embed.checkpoint.load import load_checkpoint
from dist_embed.checkpoint.manifest import CheckpointError, CheckpointLate, ManifestName
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.data.loader import Position, StepBatches
from dist_embed.observe.events import Reporter
from dist_embed.parallel.stop import stop_on_signals
from dist_embed.storage.objects import Buffer
from dist_embed.training.loop import Hooks, train_loop
from dist_embed.training.settings import TrainSection
from dist_embed.training.step import StepResult
from tests.unit.gated_store import GatedStore, saver_of, state_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GatedStore]:
    store = GatedStore(str(tmp_path / "checkpoints"))
    yield store
    store.gate.set()


class Run:
    """Steps that change all tensors in place, so that what is saved tells its step."""

    def __init__(self, saver: Saver, lines: list[str], at_step: Callable[[int], None]) -> None:
        self.state = state_of(0)
        self.state.scalars["skipped_steps"] = 0
        self.saver, self.lines, self.at_step = saver, lines, at_step

    def prefetched(self, start: Position, prepare: object) -> Iterator[StepBatches]:
        number = 0
        while True:
            number += 1
            yield StepBatches([], [], Position(0, 0, number))

    def run(self, step: int, work: object, following: object) -> StepResult:
        self.at_step(step)
        for tensor in self.state.tensors.values():
            tensor.data.add_(1.0)
        return StepResult(1.0, 1.0, 10, skipped=False, gradient_norm=None)

    def train(self, max_steps: int = 8) -> bool:
        self.state.scalars["position"] = Position().to_dict()
        me: Any = self
        return train_loop(
            self.state, me, me, TrainSection(max_steps=max_steps, log_every=99, evaluate_every=99),
            CheckpointSection(every_steps=2, drain_seconds=20.0), Hooks(None, None), self.saver,
            reporter=Reporter(lambda event: self.lines.append(str(event.get("text")))),
            metrics=None,
        )  # fmt: skip


def check_holds(store: GatedStore, steps: list[int]) -> None:
    """That there are the checkpoints of these steps, and each holds its step's values."""
    assert store.steps == steps
    for step in steps:
        state = state_of(0)
        load_checkpoint(store, ManifestName(step, 0), state)
        assert state.scalars["position"]["batch"] == step
        for name, tensor in state_of(step).tensors.items():
            assert state.tensors[name].data.equal(tensor.data), name


def let_end(store: GatedStore, saver: Saver) -> None:
    """Let the save under way, if any, end on this worker."""
    store.gate.set()
    if saver._under_way is not None and saver._under_way.thread is not None:
        saver._under_way.thread.join(30)


def told(lines: list[str]) -> list[str]:
    return [line.split(" (")[0] for line in lines if line != "None"]


WAITS = "step 4: a checkpoint is due, and that of step 2 is still under way; it is made once"


def test_training_goes_on_and_the_next_save_is_of_the_step_at_which_it_begins(
    store: GatedStore,
) -> None:
    lines: list[str] = []
    saver = saver_of(store, lines)

    def at_step(step: int) -> None:
        if step == 3:
            store.gate.clear()
        if step == 6:
            assert store.steps == []  # nothing of two saves that are due
        if step >= 6:
            let_end(store, saver)

    store.gate.clear()
    assert not Run(saver, lines, at_step).train(max_steps=10)
    check_holds(store, [2, 6, 8, 10])
    assert told(lines) == [
        f"{WAITS} that has ended",
        *(f"step {step}: checkpoint saved" for step in (2, 6, 8, 10)),
    ]


def test_failures_are_counted_as_ever_and_the_pending_one_is_tried(
    store: GatedStore,
) -> None:
    lines: list[str] = []
    saver = saver_of(store, lines, max_failures=1)
    store.error = OSError(errno.EIO, "no answer")

    def at_step(step: int) -> None:
        if step >= 5:
            let_end(store, saver)

    store.gate.clear()
    with pytest.raises(CheckpointError, match="the checkpoint of step 5 could not be saved"):
        Run(saver, lines, at_step).train()
    assert store.steps == []
    failed = "checkpoint NOT saved: [Errno 5] no answer"
    assert told(lines) == [
        f"{WAITS} that has ended",
        f"step 2: {failed}",
        "training goes on; the next checkpoint is tried when it is due",
        f"step 5: {failed}",
    ]


def test_a_request_to_stop_in_the_middle_waits_for_it_and_saves_the_last_step(
    store: GatedStore,
) -> None:
    lines: list[str] = []
    saver = saver_of(store, lines)

    def at_step(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.2, store.gate.set).start()

    store.gate.clear()
    with stop_on_signals():
        assert Run(saver, lines, at_step).train()
    check_holds(store, [2, 5])
    assert told(lines)[-2:] == ["asked to stop: saving step 5", "step 5: checkpoint saved"]


def test_a_save_that_hangs_ends_the_run_at_the_next_one_that_is_due(
    store: GatedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saver_module, "GIVE_UP_SECONDS", 0.01)
    lines: list[str] = []
    steps: list[int] = []
    saver = saver_of(store, lines, timeout_seconds=0.1)

    def at_step(step: int) -> None:
        steps.append(step)
        time.sleep(0.03)

    store.gate.clear()
    with pytest.raises(CheckpointLate, match="step 2 was not written"):
        Run(saver, lines, at_step).train(max_steps=1000)
    # Until then training has gone on.
    assert 2 < len(steps) < 100
    assert told(lines) == [f"{WAITS} that has ended"]


def test_a_slow_store_that_comes_further_is_not_taken_for_one_that_hangs(
    store: GatedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saver_module, "write_rows", partial(write.write_rows, chunk_bytes=16))
    put = store.put

    def slowly(name: str, parts: Iterable[Buffer]) -> None:
        time.sleep(0.05)
        put(name, parts)

    monkeypatch.setattr(store, "put", slowly)
    saver = saver_of(store, timeout_seconds=0.5)
    saver.save(state_of(1))
    began, hung = time.monotonic(), False
    while not saver.has_ended:
        time.sleep(0.01)
        hung = hung or saver.may_hang
    assert time.monotonic() - began > 2 * 0.5
    assert not hung
    saver.wait()
    assert saver.step_under_way is None
    assert not saver.may_hang

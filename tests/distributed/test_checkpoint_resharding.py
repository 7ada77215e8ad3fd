"""Checkpoints from any number of workers load on any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint.manager import (
    TrainingState,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from dist_embed.parallel.group import Group
from dist_embed.train.assemble import dense_tensors
from tests.distributed.pool import RemoteError, WorkerPool
from tests.distributed.tiny import Sharded, Tiny, joined, random_pairs

COUNTS = [1, 2, 3, 4]


def state_of(sharded: Sharded, **scalars: Any) -> TrainingState:
    dense = dense_tensors(sharded.transformer, sharded.optimizer)
    return TrainingState(0, sharded.lookup, dense, dict(scalars))


def train_and_save(group: Group, tiny: Tiny, uri: str) -> tuple[Any, Any]:
    sharded = Sharded(tiny, group)
    for number in (1, 2):
        sharded.step(number, random_pairs(6, number, tiny.source_rows, tiny.target_rows))
    state = state_of(sharded, position={"epoch": 3, "pool": 1, "batch": 4})
    state.step = 2
    save_checkpoint(uri, state)
    return sharded.tables(), sharded.dense()


def load(group: Group, tiny: Tiny, uri: str) -> tuple[Any, Any, Any, Any, int]:
    sharded = Sharded(tiny, group)
    before = sharded.tables()
    state = state_of(sharded)
    load_checkpoint(uri, 2, state)
    return before, sharded.tables(), sharded.dense(), state.scalars, state.step


@pytest.mark.parametrize("saved_by", COUNTS)
@pytest.mark.parametrize("rows", [31, 3])
def test_every_count_loads_on_every_count(
    workers: WorkerPool, tmp_path: Path, saved_by: int, rows: int
) -> None:
    tiny = Tiny(source_rows=rows, target_rows=rows, share="none")
    saved = workers.run(saved_by, train_and_save, tiny, str(tmp_path))
    for loaded_by in COUNTS:
        loaded = workers.run(loaded_by, load, tiny, str(tmp_path))
        for table in ("source", "target", "output"):
            weight, state = joined([tables for tables, _ in saved], table)
            fresh, _ = joined([before for before, *_ in loaded], table)
            loaded_weight, loaded_state = joined([after for _, after, *_ in loaded], table)
            assert not torch.equal(fresh, weight)
            assert torch.equal(loaded_weight, weight)
            assert torch.equal(loaded_state, state)
        for _, _, dense, scalars, step in loaded:
            assert step == 2
            assert scalars["position"] == {"epoch": 3, "pool": 1, "batch": 4}
            for name, value in saved[0][1].items():
                assert torch.equal(dense[name], value), name


def save_where_worker_fails(group: Group, tiny: Tiny, uri: str, failing: int) -> str:
    sharded = Sharded(tiny, group)
    state = state_of(sharded)
    state.step = 1
    save_checkpoint(uri, state)
    state.step = 2
    if group.rank == failing:

        def fail(name: str) -> Any:
            raise OSError(28, f"No space left on device (worker {group.rank}, {name})")

        sharded.lookup.weight = fail  # type: ignore[method-assign]
    try:
        save_checkpoint(uri, state)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return "no error"


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_writer_fails_on_every_worker_and_publishes_nothing(
    workers: WorkerPool, tmp_path: Path, failing: int
) -> None:
    told = workers.run(3, save_where_worker_fails, Tiny(), str(tmp_path), failing)
    for rank, text in enumerate(told):
        assert f"No space left on device (worker {failing}" in text
        assert text.startswith("OSError" if rank == failing else "WorkerError")
    assert list_checkpoints(str(tmp_path)) == [1]


def load_other_model(group: Group, tiny: Tiny, uri: str) -> None:
    load_checkpoint(uri, 2, state_of(Sharded(tiny, group)))


def test_another_model_is_refused_before_anything_changes(
    workers: WorkerPool, tmp_path: Path
) -> None:
    workers.run(2, train_and_save, Tiny(), str(tmp_path))
    with pytest.raises(RemoteError, match=r"holds tables.*configuration asks for"):
        workers.run(1, load_other_model, Tiny(target_rows=37), str(tmp_path))


def save_many(group: Group, tiny: Tiny, uri: str, losses: list[float]) -> None:
    sharded = Sharded(tiny, group)
    for step, loss in enumerate(losses, start=1):
        state = state_of(sharded, validation_loss=loss)
        state.step = step
        save_checkpoint(uri, state)


def test_pruning_keeps_the_newest_and_the_best(workers: WorkerPool, tmp_path: Path) -> None:
    uri = str(tmp_path)
    workers.run(1, save_many, Tiny(), uri, [3.0, 1.0, 2.0, 2.5, 2.6])
    assert best_checkpoint(uri) == 2
    assert prune_checkpoints(uri, keep_last=2, keep_best=1) == [1, 3]
    assert list_checkpoints(uri) == [2, 4, 5]
    # What is half removed, or half written, is no checkpoint.
    (tmp_path / "checkpoints" / "step-000000005" / "manifest.json").unlink()
    assert list_checkpoints(uri) == [2, 4]

"""Checkpoints from any number of workers load on any other, and a failing writer publishes none."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint import write
from dist_embed.checkpoint.catalogue import (
    current_names,
    list_steps,
    name_of_choice,
    open_checkpoints,
    read_manifest,
)
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.of_tables import live_tensors, row_multipliers
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.state import TrainingState
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from dist_embed.training.assemble import dense_tensors
from tests.checkpoints import keeping, write_checkpoint
from tests.distributed.pool import RemoteError, WorkerPool
from tests.distributed.savers import saver_of
from tests.distributed.tiny import Sharded, Tiny, joined, random_pairs

COUNTS = [1, 2, 3, 4, 8]


def state_of(sharded: Sharded, step: int = 0, **scalars: Any) -> TrainingState:
    return TrainingState(
        group=sharded.group,
        step=step,
        tensors=live_tensors(sharded.lookup, dense_tensors(sharded.transformer, sharded.optimizer)),
        row_multipliers=row_multipliers(sharded.lookup),
        scalars=dict(scalars),
    )


def train_and_save(group: Group, tiny: Tiny, uri: str) -> tuple[Any, Any]:
    sharded = Sharded(tiny, group)
    for number in (1, 2):
        sharded.step(number, random_pairs(6, number, tiny.source_rows, tiny.target_rows))
    saver = saver_of(group, uri, [])
    saver.save(state_of(sharded, 2, position={"epoch": 3, "pool": 1, "batch": 4}))
    saver.wait()
    return sharded.tables(), sharded.dense()


def load(group: Group, tiny: Tiny, uri: str) -> tuple[Any, ...]:
    sharded = Sharded(tiny, group)
    before = sharded.tables(), sharded.dense()
    state = state_of(sharded)
    loaded = load_newest(open_checkpoints(uri), state, print)
    return (*before, sharded.tables(), sharded.dense(), state.scalars, state.step, loaded)


@pytest.mark.parametrize(
    "saved_by",
    [pytest.param(n, marks=() if n in (2, 8) else pytest.mark.heavy) for n in COUNTS],
)
@pytest.mark.parametrize("rows", [31, pytest.param(4, marks=pytest.mark.heavy)])
def test_every_count_loads_on_every_count(
    workers: WorkerPool, tmp_path: Path, saved_by: int, rows: int
) -> None:
    tiny = Tiny(source_rows=rows, target_rows=rows, share="none")
    saved = workers.run(saved_by, train_and_save, tiny, str(tmp_path))
    for loaded_by in COUNTS:
        loaded = workers.run(loaded_by, load, tiny, str(tmp_path))
        for table in ("source", "target", "output"):
            weight, state = joined([tables for tables, _ in saved], table)
            fresh, fresh_state = joined([result[0] for result in loaded], table)
            loaded_weight, loaded_state = joined([result[2] for result in loaded], table)
            assert not torch.equal(fresh, weight)
            assert not torch.equal(fresh_state, state)
            assert torch.equal(loaded_weight, weight)
            assert torch.equal(loaded_state, state)
        for _, fresh_dense, _, dense, scalars, step, _ in loaded:
            assert step == 2
            assert scalars["position"] == {"epoch": 3, "pool": 1, "batch": 4}
            assert not torch.equal(
                fresh_dense["model.encoder.0.attention.out.weight"],
                dense["model.encoder.0.attention.out.weight"],
            )
            for name, value in saved[0][1].items():
                assert torch.equal(dense[name], value), name


def read_little(group: Group, uri: str, rows: int, num_rows: int) -> tuple[int, int]:
    """Bytes that loading this worker's part of a table reads, and needs."""
    store = open_checkpoints(uri)
    reader = CheckpointReader(store, read_manifest(store, current_names(store)[-1]))
    first = group.rank * num_rows // group.num_workers
    end = (group.rank + 1) * num_rows // group.num_workers
    data = reader.rows("t", first, end - first)
    assert torch.equal(data[:, 0], torch.arange(first, end, dtype=torch.float32))
    return reader.bytes_read, data.nbytes


def save_table(group: Group, uri: str, num_rows: int, width: int) -> None:
    from dist_embed.checkpoint.state import LiveTensor

    first = group.rank * num_rows // group.num_workers
    end = (group.rank + 1) * num_rows // group.num_workers
    data = torch.arange(first, end, dtype=torch.float32)[:, None].repeat(1, width)
    state = TrainingState(group, 1, {"t": LiveTensor(data, first, num_rows, replicated=False)})
    saver = saver_of(group, uri, [])
    saver.save(state)
    saver.wait()


def test_another_number_of_workers_reads_little_more_than_it_needs(
    workers: WorkerPool, tmp_path: Path
) -> None:
    rows, width = 200_000, 64  # 49 MiB: each of 3 workers needs 16
    workers.run(2, save_table, str(tmp_path), rows, width)
    for read, needed in workers.run(3, read_little, str(tmp_path), rows, rows):
        # A block too much at either end, the index, and the byte that shows a chunk's end.
        assert needed < read <= needed + 2 * 2**20 + 20_000


def save_where_a_write_fails(
    group: Group, tiny: Tiny, uri: str, failing: int, kind: str, asynchronous: bool
) -> tuple[list[str], list[float], list[int]]:
    """Save twice, the second time with a write that fails on one worker; then train and save on.

    Returns what was said, the losses of the steps, and the steps saved after each save.
    """
    sharded = Sharded(tiny, group)
    lines: list[str] = []
    saver = saver_of(group, uri, lines, asynchronous=asynchronous)
    real_put, real_create = ObjectStore.put, ObjectStore.create

    def fail(name: str) -> None:
        if kind in name:
            raise OSError(5, f"injected on worker {group.rank}", name)

    def put(store: ObjectStore, name: str, parts: Any) -> None:
        fail(name)
        real_put(store, name, parts)

    def create(store: ObjectStore, name: str, data: bytes) -> None:
        fail(name)
        real_create(store, name, data)

    losses, steps = [], []
    for number in (1, 2, 3):
        pairs = random_pairs(6, number, tiny.source_rows, tiny.target_rows)
        losses.append(sharded.step(number, pairs).loss)
        if number == 2 and group.rank == failing:
            ObjectStore.put, ObjectStore.create = put, create  # type: ignore[method-assign]
        try:
            saver.save(state_of(sharded, number))
            saver.wait()
        finally:
            ObjectStore.put, ObjectStore.create = real_put, real_create  # type: ignore[method-assign]
        steps.append(list_steps(uri)[-1])
    return lines, losses, steps


@pytest.mark.parametrize(
    ("kind", "failing", "asynchronous"),
    [("chunk-", 0, True), ("chunk-", 2, True), ("index-", 1, False), ("index-", 2, True),
     ("manifest", 0, True), ("manifest", 0, False)],
)  # fmt: skip
def test_a_failing_write_publishes_nothing_and_the_run_goes_on(
    workers: WorkerPool, tmp_path: Path, failing: int, kind: str, asynchronous: bool
) -> None:
    told = workers.run(
        3, save_where_a_write_fails, Tiny(), str(tmp_path), failing, kind, asynchronous
    )
    for lines, losses, steps in told:
        assert any(
            f"step 2: checkpoint NOT saved: worker {failing}: " in line
            and f"injected on worker {failing}" in line
            for line in lines
        ), lines
        assert any("training goes on" in line for line in lines)
        assert steps == [1, 1, 3]
        assert losses == told[0][1]
    assert list_steps(str(tmp_path)) == [1, 3]


def give_up(group: Group, tiny: Tiny, uri: str, failing: int, error: int) -> list[str]:
    sharded = Sharded(tiny, group)
    saver = saver_of(group, uri, [], max_failures=1)
    if group.rank == failing:

        def put(store: ObjectStore, name: str, parts: Any) -> None:
            raise OSError(error, f"injected on worker {group.rank}", name)

        ObjectStore.put, real_put = put, ObjectStore.put  # type: ignore[method-assign]
    told = []
    for step in (1, 2):
        try:
            saver.save(state_of(sharded, step))
            saver.wait()
            told.append("went on")
        except Exception as exc:
            told.append(f"{type(exc).__name__}: {exc}")
    if group.rank == failing:
        ObjectStore.put = real_put  # type: ignore[method-assign]
    return told


@pytest.mark.parametrize(
    ("failing", "error", "step"), [(0, errno.EIO, 2), (2, errno.EIO, 2), (1, errno.ENOSPC, 1)]
)
def test_too_many_failures_stop_every_worker_at_the_same_step(
    workers: WorkerPool, tmp_path: Path, failing: int, error: int, step: int
) -> None:
    for told in workers.run(3, give_up, Tiny(), str(tmp_path), failing, error):
        assert told[: step - 1] == ["went on"] * (step - 1)
        assert told[step - 1].startswith(
            f"CheckpointError: the checkpoint of step {step} could not be saved: worker {failing}: "
        )
        assert f"injected on worker {failing}" in told[step - 1]
    assert list_steps(str(tmp_path)) == []


def save_each_at_home(group: Group, folder: str) -> list[str]:
    home = f"{folder}/machine-{group.rank}"
    told: list[str] = []
    saver = saver_of(group, home, told, max_failures=1)
    saver.save(state_of(Sharded(Tiny(), group), 1))
    saver.wait()
    return told


def test_a_folder_that_is_not_one_for_all_is_said_and_nothing_published(
    workers: WorkerPool, tmp_path: Path
) -> None:
    # An absolute path names a folder on each of several machines.
    for told in workers.run(2, save_each_at_home, str(tmp_path)):
        assert "checkpoint NOT saved" in told[0]
        assert "worker 0 does not find what worker 1 has written there" in told[0]
    assert list_steps(str(tmp_path / "machine-0")) == list_steps(str(tmp_path / "machine-1")) == []


def load_other_model(group: Group, tiny: Tiny, uri: str) -> None:
    sharded = Sharded(tiny, group)
    before = sharded.tables()
    try:
        load_newest(open_checkpoints(uri), state_of(sharded), print)
    finally:
        for table, (_, weight, _) in sharded.tables().items():
            assert torch.equal(weight, before[table][1]), "changed before it was refused"


def test_another_model_is_refused_before_anything_changes(
    workers: WorkerPool, tmp_path: Path
) -> None:
    workers.run(2, train_and_save, Tiny(), str(tmp_path))
    with pytest.raises(RemoteError, match=r"asked for is F32 37 × 8") as refused:
        workers.run(1, load_other_model, Tiny(target_rows=37), str(tmp_path))
    assert "changed before it was refused" not in str(refused.value)


def save_many(group: Group, tiny: Tiny, uri: str, losses: list[float]) -> None:
    sharded = Sharded(tiny, group)
    saver = saver_of(group, uri, [])
    for step, loss in enumerate(losses, start=1):
        saver.save(state_of(sharded, step, validation_loss=loss))
    saver.wait()


def test_pruning_keeps_the_newest_and_the_best(workers: WorkerPool, tmp_path: Path) -> None:
    uri = str(tmp_path)
    workers.run(1, save_many, Tiny(), uri, [3.0, 1.0, 2.0, 2.5, 2.6])
    assert name_of_choice(uri, None).step == 2
    store = open_checkpoints(uri)
    assert Pruner(store, keeping(2, 1, 0, 24.0)).prune().steps == [1, 3]
    assert list_steps(uri) == [2, 4, 5]
    # What is half removed, or half written, is no checkpoint.
    store.remove(current_names(store)[-1].path)
    assert list_steps(uri) == [2, 4]


def race(group: Group, uris: list[str]) -> list[str]:
    """Each worker as a run of its own, all saving one step of one folder at the same time."""
    return [save_at_once_with_others(group, uri) for uri in uris]


def save_at_once_with_others(group: Group, uri: str) -> str:
    alone = Group(0, 1, 1, group.device, group.process_group)
    sharded_rows = torch.full((50, 4), float(group.rank))
    from dist_embed.checkpoint.state import LiveTensor, own_rows

    state = TrainingState(alone, 5, {"t": LiveTensor.whole(sharded_rows)})
    description = write.Description(5, "", {"t": state.tensors["t"].info}, {}, "{}")
    torch.distributed.barrier(group.process_group)
    try:
        write_checkpoint(open_checkpoints(uri), description, own_rows(state))
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return "saved"


def test_of_two_writers_of_one_step_one_is_told(workers: WorkerPool, tmp_path: Path) -> None:
    uris = [str(tmp_path / str(attempt)) for attempt in range(10)]
    for uri, *told in zip(uris, *workers.run(4, race, uris), strict=True):
        assert told.count("saved") == 1
        lost = next(text for text in told if text != "saved")
        assert lost.startswith("CheckpointConflict: another writer has saved step 5")
        store = open_checkpoints(uri)
        assert len(store.names("manifests")) == 1
        reader = CheckpointReader(store, read_manifest(store, current_names(store)[0]))
        assert reader.rows("t", 0, 50).unique().item() == told.index("saved")

"""Replicated tensors are read and proven by one worker each, and the others get them from it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dist_embed.checkpoint.load import load_checkpoint
from dist_embed.checkpoint.manifest import OBJECTS, CheckpointDamaged, ManifestName
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.state import LiveTensor, TrainingState, owners
from dist_embed.parallel.errors import WorkerError
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import keeping, saving
from tests.distributed.pool import WorkerPool

MIB = 2**20
NAME = ManifestName(1, 0)
NUM_MATRICES = 12
TABLE_ROWS = 7


class CountingStore(ObjectStore):
    """Counts the bytes that are read of chunks, and fails where it is told to."""

    def __init__(self, uri: str, fails: bool = False) -> None:
        super().__init__(uri)
        self._lock = threading.Lock()
        self._fails = fails
        self.bytes_of_chunks = 0

    def read_into(self, name: str, start: int, buffers: list[memoryview]) -> int:
        count = super().read_into(name, start, buffers)
        if "/chunk-" in name:
            if self._fails:
                raise OSError(5, "no answer", name)
            with self._lock:
                self.bytes_of_chunks += count
        return count


def dense() -> dict[str, Tensor]:
    """12 MiB in matrices, and some tensors of other types and shapes; one that is not contiguous,
    and one without bytes behind all others.
    """
    values = {
        f"model.{number}.weight": torch.arange(MIB // 4).view(64, -1).float() + number
        for number in range(NUM_MATRICES)
    }
    return values | {
        "model.turned": torch.arange(12.0).view(3, 4).t(),
        "model.half": torch.arange(9).to(torch.bfloat16),
        "model.flags": torch.tensor([True, False, True]),
        "optimizer.step": torch.tensor(41.0),
        "optimizer.none": torch.zeros(0, 3),
    }


def state_of(group: Group, values: dict[str, Tensor]) -> TrainingState:
    first = group.rank * TABLE_ROWS // group.num_workers
    end = (group.rank + 1) * TABLE_ROWS // group.num_workers
    rows = torch.arange(first, end, dtype=torch.float32)[:, None].repeat(1, 4)
    table = LiveTensor(rows, first, TABLE_ROWS, replicated=False)
    whole = {name: LiveTensor.whole(data) for name, data in values.items()}
    return TrainingState(group, 1, {"table.t.weight": table} | whole)


def save(group: Group, uri: str) -> None:
    store = ObjectStore(uri)
    saver = Saver(
        store, group, saving("waiting", 0, 30.0, 30.0), Pruner(store, keeping(9, 0, 0, 24.0)),
        report=lambda line: None,
    )  # fmt: skip
    saver.save(state_of(group, dense()))


def load(group: Group, uri: str, in_place: bool) -> tuple[int, list[str]]:
    """Bytes read of chunks, and which tensors are not what was saved."""
    empty = {name: torch.zeros_like(data) for name, data in dense().items()}
    state, store = state_of(group, empty), CountingStore(uri)
    rows = state.tensors["table.t.weight"].data
    expected = dense() | {"table.t.weight": rows.clone()}
    rows.zero_()
    load_checkpoint(store, NAME, state, in_place=in_place)
    different = [
        name for name, data in expected.items() if not torch.equal(state.tensors[name].data, data)
    ]
    return store.bytes_of_chunks, different


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_all_workers_together_read_replicated_tensors_once(
    workers: WorkerPool, tmp_path: Path, num_workers: int, in_place: bool
) -> None:
    workers.run(2, save, str(tmp_path))
    found = workers.run(num_workers, load, str(tmp_path), in_place)
    assert [different for _, different in found] == [[]] * num_workers
    read = sum(count for count, _ in found)
    once = sum(data.nbytes for data in dense().values())
    # Where one worker's share ends the next one reads the same block; rows lie in one of each half.
    assert once <= read // (1 + in_place) <= once + 3 * num_workers * MIB
    # And nearly the same each: none reads for all.
    assert max(count for count, _ in found) // (1 + in_place) <= once / num_workers + 3 * MIB


def load_badly(group: Group, uri: str, failing: int) -> tuple[str, bool]:
    state = state_of(group, {name: torch.zeros_like(data) for name, data in dense().items()})
    told = ""
    try:
        load_checkpoint(CountingStore(uri, fails=group.rank == failing), NAME, state)
    except (OSError, WorkerError, CheckpointDamaged) as exc:
        told = str(exc)
    return told, any(state.tensors[name].data.any() for name in dense())


def test_what_its_reader_cannot_read_or_prove_is_an_error_of_all_and_changes_nothing(
    workers: WorkerPool, tmp_path: Path
) -> None:
    workers.run(2, save, str(tmp_path))
    for told, changed in workers.run(3, load_badly, str(tmp_path), 1):
        assert "no answer" in told
        assert not changed
    chunk = sorted((tmp_path / OBJECTS).glob("*/chunk-00000-*"))[0]
    with chunk.open("r+b") as file:  # in a matrix that worker 0 reads alone
        file.seek(2 * MIB)
        byte = file.read(1)
        file.seek(2 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    found = workers.run(3, load_badly, str(tmp_path), -1)
    assert {chunk.name in told for told, _ in found} == {True}
    assert len({told for told, _ in found}) == 1
    assert not any(changed for _, changed in found)


def test_shares_are_dealt_by_bytes_and_all_have_an_owner() -> None:
    for num_workers in (1, 2, 3, 5, 40):
        group = Group(0, num_workers, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
        found = owners(state_of(group, dense()))
        assert list(found) == list(dense())
        assert set(found.values()) <= set(range(num_workers))
        assert sorted(found.values()) == list(found.values())
        shares = [
            sum(dense()[name].nbytes for name, rank in found.items() if rank == worker)
            for worker in range(num_workers)
        ]
        assert max(shares) <= sum(shares) / num_workers + MIB

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_embed.checkpoint import by_id, export
from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.export import Part, export_checkpoint
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointDamaged,
    CheckpointError,
    Manifest,
    TensorInfo,
)
from dist_embed.checkpoint.state import LiveTensor
from dist_embed.checkpoint.write import Description
from dist_embed.embedding.row_order import RowOrder
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import write_checkpoint

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]
ROWS, WIDTH = 107, 6
EMBEDDING = torch.randn(ROWS, WIDTH)  # row i is that of id i
MODEL = {
    "model.out.weight": torch.randn(9, 5).to(torch.bfloat16),
    "model.scale": torch.tensor(2.5),
    "model.none": torch.zeros(0, 3),
    "model.flags": torch.tensor([True, False, True]),
}


def in_checkpoint_order(by_id: Tensor) -> Tensor:
    order = RowOrder(len(by_id))
    saved = torch.empty_like(by_id)
    saved[order.rows_of(torch.arange(len(by_id)))] = by_id
    return saved


TENSORS = {
    "table.words.weight": in_checkpoint_order(EMBEDDING),
    "table.words.momentum1": torch.rand(ROWS),
    "table.tags.weight": in_checkpoint_order(torch.arange(8.0).view(4, 2)),
    **MODEL,
    "optimizer.out.exp_avg": torch.randn(9, 5),
}
MULTIPLIERS = {"words": RowOrder(ROWS).multiplier, "tags": RowOrder(4).multiplier}


def save(uri: str, row_multipliers: dict[str, int] = MULTIPLIERS) -> tuple[ObjectStore, Manifest]:
    store = open_checkpoints(uri)
    infos = {name: LiveTensor.whole(data).info for name, data in TENSORS.items()}
    rows = [Rows(name, 0, data) for name, data in TENSORS.items()]
    description = Description(7, "", infos, row_multipliers, json.dumps({}))
    return store, write_checkpoint(store, description, rows, chunk_bytes=1000)


@pytest.fixture(params=["local", "memory"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectStore, Manifest]:
    return save(
        {"local": str(tmp_path / "run"), "memory": f"memory://{uuid.uuid4().hex}"}[request.param]
    )


@pytest.fixture
def saved_here(tmp_path: Path) -> tuple[ObjectStore, Manifest]:
    return save(str(tmp_path / "run"))


# Rows of 24 bytes: one strip, several with a shorter last one, one row each, and less than a row.
@pytest.mark.parametrize("strip_bytes", [2**20, 720, 24, 10])
@pytest.mark.parametrize("buckets", [(2**20, 9), (480, 99), (24, 200), (1, 7), (2**20, 1)])
def test_a_table_loads_into_an_embedding(
    saved_here: tuple[ObjectStore, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strip_bytes: int,
    buckets: tuple[int, int],
) -> None:
    monkeypatch.setattr(by_id, "STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(by_id, "BUCKET_BYTES", buckets[0])
    monkeypatch.setattr(by_id, "MOST_BUCKETS", buckets[1])
    strips: list[int] = []
    output = tmp_path / "new" / "words.safetensors"
    written = export_checkpoint(*saved_here, output, table="words", on_bytes=strips.append)
    assert written == {"weight": TensorInfo(dtype="F32", shape=[ROWS, WIDTH])}
    embedding = nn.Embedding(ROWS, WIDTH)
    embedding.load_state_dict(load_file(output))
    assert torch.equal(embedding.weight.data, EMBEDDING)
    assert torch.equal(embedding(torch.tensor([5, 0])), EMBEDDING[[5, 0]])
    assert sum(strips) == 4 * ROWS * WIDTH
    assert len(strips) == -(-ROWS // max(1, strip_bytes // 24))
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("strip_bytes", [2**20, 100])
def test_the_whole_file_has_all_weights_and_no_optimizer_state(
    saved: tuple[ObjectStore, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strip_bytes: int,
) -> None:
    monkeypatch.setattr(export, "STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(by_id, "STRIP_BYTES", strip_bytes)
    output = tmp_path / "all.safetensors"
    written = export_checkpoint(*saved, output, table=None)
    expected = {
        "table.words.weight": EMBEDDING,
        "table.tags.weight": torch.arange(8.0).view(4, 2),
        **MODEL,
    }
    loaded = load_file(output)
    assert set(loaded) == set(expected) == set(written)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    with safe_open(str(output), "pt") as file:
        assert file.metadata() == {"step": "7"}


@pytest.mark.parametrize(
    "ids", [np.array([1, 2, 5]), np.arange(0, ROWS, 3), range(20, 61), range(106, 107), range(9, 9)]
)
def test_of_one_table_some_rows_can_be_written(
    saved: tuple[ObjectStore, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: by_id.Ids,
) -> None:
    monkeypatch.setattr(by_id, "STRIP_BYTES", 240)
    monkeypatch.setattr(by_id, "BUCKET_BYTES", 120)
    strips: list[int] = []
    written = export_checkpoint(
        *saved, tmp_path / "some", table="words", ids=ids, on_bytes=strips.append
    )
    assert torch.equal(load_file(tmp_path / "some")["weight"], EMBEDDING[list(ids)])
    assert written["weight"].shape == [len(ids), *EMBEDDING.shape[1:]]
    if len(ids) == 1:
        assert sum(strips) == 240  # strips that have none of them are not read


def test_there_are_only_so_many_buckets(
    saved: tuple[ObjectStore, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_id, "BUCKET_BYTES", 1)
    monkeypatch.setattr(by_id, "MOST_BUCKETS", 7)
    sizes: list[int] = []
    read = by_id._read

    def noted(handle: int, size: int, at: int) -> object:
        sizes.append(size)
        return read(handle, size, at)

    monkeypatch.setattr(by_id, "_read", noted)
    export_checkpoint(*saved, tmp_path / "words", table="words")
    assert sizes == [24 * 16] * 6 + [24 * 11]
    assert torch.equal(load_file(tmp_path / "words")["weight"], EMBEDDING)


@pytest.mark.parametrize("count", [1, 2, 7, ROWS, ROWS + 3])
def test_parts_of_the_rows_are_the_whole(count: int) -> None:
    parts = [Part(number, count) for number in range(1, count + 1)]
    rows = [part.rows(ROWS) for part in parts]
    assert [row for some in rows for row in some] == list(range(ROWS))
    assert max(map(len, rows)) <= min(map(len, rows)) + 1
    names = [part.name("a/b.txt") for part in parts]
    assert names == sorted(set(names))
    assert names[-1] == ("a/b.txt" if count == 1 else f"a/b.txt.part-{count:05d}-of-{count:05d}")


@pytest.mark.parametrize(("number", "count"), [(0, 3), (4, 3), (-1, 1), (1, 100_000)])
def test_a_part_that_is_none_is_refused(number: int, count: int) -> None:
    with pytest.raises(UserError, match=f"^part {number} of {count} is not allowed"):
        Part(number, count)


def test_an_unknown_table_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step 7 has no table 'word'; it has words, tags"):
        export_checkpoint(*save(str(tmp_path / "run")), tmp_path / "o", table="word")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_is_replaced_only_by_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_id, "STRIP_BYTES", 720)
    store, manifest = save(str(tmp_path / "run"))
    output = tmp_path / "out" / "words.safetensors"
    output.parent.mkdir()
    output.write_bytes(b"old")
    # Late in the table, so that some of the new file has been written before it is found.
    chunk = sorted((Path(store.uri) / OBJECTS / manifest.attempt).glob("chunk-*"))[2]
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:-1])
    strips: list[int] = []
    with pytest.raises(CheckpointDamaged, match=chunk.name):
        export_checkpoint(store, manifest, output, table="words", on_bytes=strips.append)
    assert strips
    assert output.read_bytes() == b"old"
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    chunk.write_bytes(sound)
    export_checkpoint(store, manifest, output, table="words")
    assert torch.equal(load_file(output)["weight"], EMBEDDING)


def test_another_order_of_rows_is_not_taken_for_this_one(tmp_path: Path) -> None:
    store, manifest = save(str(tmp_path / "run"), MULTIPLIERS | {"words": 5})
    for table in ("words", None):
        with pytest.raises(CheckpointError, match=r"words.* another order of rows"):
            export_checkpoint(store, manifest, tmp_path / "o", table=table)
    export_checkpoint(store, manifest, tmp_path / "o", table="tags")


def test_a_file_takes_all_its_room_before_rows_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages of a mapped file that find no room would end the process.
    store, manifest = save(str(tmp_path / "run"))

    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(store, manifest, tmp_path / "out" / "o", table="words")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    export_checkpoint(store, manifest, tmp_path / "out" / "o", table="words")
    taken = (tmp_path / "out" / "o").stat()
    assert taken.st_blocks * 512 >= taken.st_size


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest = save(str(tmp_path / "run"))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(store, manifest, tmp_path / "out" / "o", table="words")
    assert list((tmp_path / "out").iterdir()) == []

"""Whatever is damaged in a checkpoint is found, before a live tensor changes.

Objects are damaged behind the store's back, as a disk or a tired server would.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from fsspec.implementations.memory import MemoryFileSystem

from dist_embed.checkpoint import write
from dist_embed.checkpoint.catalogue import open_checkpoints, read_manifest
from dist_embed.checkpoint.load import load_checkpoint, load_newest
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointDamaged,
    CheckpointError,
    ManifestName,
    manifest_bytes,
)
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.errors import StorageError, StoreUnavailable
from dist_embed.storage.objects import ObjectStore
from tests.stores.s3_server import MotoServer, S3Server, connect
from tests.stores.two_checkpoints import (
    NEWER,
    ONE,
    Run,
    assert_holds,
    run_at,
    save,
    state_of,
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """On a local disk: about a dozen chunks and three indexes each."""
    monkeypatch.setattr(write, "CHUNKS_PER_INDEX", 4)
    return run_at(str(tmp_path), tmp_path, 1000)


Damage = tuple[str, dict[str, bytes | None]]


def flips(run: Run, draw: random.Random) -> Iterator[Damage]:
    """Single bits: of the first and the last byte, and anywhere between."""
    for name, data in run.files.items():
        bits = {0, 8 * len(data) - 1, *draw.sample(range(8 * len(data)), 32)}
        for bit in sorted(bits):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit} of {name}", {name: bytes(flipped)}


def truncations(run: Run, draw: random.Random) -> Iterator[Damage]:
    for name, data in run.files.items():
        for length in {0, 1, len(data) - 1, *draw.sample(range(len(data)), 6)}:
            yield f"{name} cut to {length} bytes", {name: data[:length]}


def zeroed(run: Run, draw: random.Random) -> Iterator[Damage]:
    for name, data in run.files.items():
        for _ in range(6):
            start = draw.randrange(len(data))
            length = min(draw.choice([1, 16, 512, 4096]), len(data) - start)
            changed = data[:start] + bytes(length) + data[start + length :]
            if changed != data:
                yield f"{length} bytes zeroed at {start} of {name}", {name: changed}
        yield f"{name} all zero", {name: bytes(len(data))}


def swapped(run: Run, draw: random.Random) -> Iterator[Damage]:
    for kind in ("chunk", "index"):
        for one, other in combinations(run.named(kind), 2):
            yield f"{one} for {other}", {one: run.files[other], other: run.files[one]}


def stale(run: Run, draw: random.Random) -> Iterator[Damage]:
    """The object of the same name from the older checkpoint."""
    pairs = dict(zip(run.files, run.older_files.values(), strict=True))
    for name, data in pairs.items():
        yield f"stale {name}", {name: data}
    chunks, indexes = run.named("chunk"), run.named("index")
    yield "all chunks stale", {name: pairs[name] for name in chunks}
    yield "all indexes stale", {name: pairs[name] for name in indexes}
    yield "all but the manifest stale", {name: pairs[name] for name in chunks + indexes}


def missing(run: Run, draw: random.Random) -> Iterator[Damage]:
    objects = run.named("chunk") + run.named("index")
    for name in objects:
        yield f"no {name}", {name: None}
    yield "no objects", dict.fromkeys(objects)


def appended(run: Run, draw: random.Random) -> Iterator[Damage]:
    for name, data in run.files.items():
        for more in (b"\0", b"\n", b" ", draw.randbytes(5000), data):
            yield f"{len(more)} bytes more in {name}", {name: data + more}


def edited(run: Run, draw: random.Random) -> Iterator[Damage]:
    """Manifests and indexes that say something else, with the sums that they had."""
    for name in run.named("step") + run.named("index"):
        data = run.files[name]
        digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
        for place in draw.sample(digits, 10):
            other = b"%d" % ((int(chr(data[place])) + draw.randint(1, 9)) % 10)
            yield f"byte {place} of {name}", {name: data[:place] + other + data[place + 1 :]}


KINDS: list[Callable[[Run, random.Random], Iterator[Damage]]] = [
    flips, truncations, zeroed, swapped, stale, missing, appended, edited,
]  # fmt: skip


def damages(kind: Callable[[Run, random.Random], Iterator[Damage]], run: Run) -> list[Damage]:
    return list(kind(run, random.Random(kind.__name__)))


def test_there_are_a_thousand_different_ones(run: Run) -> None:
    kinds = {len(run.named(kind)) for kind in ("step", "index", "chunk")}
    assert kinds == {1, 3, 12}
    different = {
        (name, data) for kind in KINDS for _, changes in damages(kind, run)
        for name, data in changes.items() if data != run.files[name]
    }  # fmt: skip
    assert len(different) >= 1000
    for kind in KINDS:
        for label, changes in damages(kind, run):
            assert any(data != run.files[name] for name, data in changes.items()), label


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_on_a_local_disk_is_refused(
    run: Run, kind: Callable[[Run, random.Random], Iterator[Damage]], every: int
) -> None:
    """By default of the kinds with hundreds every fourth one."""
    run.check_sound()
    found = damages(kind, run)
    if len(found) > 100:
        found = found[::every]
    for number, (label, changes) in enumerate(found):
        print(label)  # shown where it fails
        run.put(changes)
        run.check_refused()
        if number % 8 == 0:
            run.check_passed_over()
        run.mend(changes)
    assert found
    run.check_sound()


@contextmanager
def reached(server: S3Server | MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process finds the server."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_run(s3: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    folder = s3.folder("bucket") / s3_root.removeprefix("s3://bucket/")
    with reached(s3, monkeypatch):
        yield run_at(s3_root, folder, 4000)


def test_damage_on_an_object_store_is_refused(s3_run: Run) -> None:
    s3_run.check_sound()
    draw = random.Random(3)
    sample: list[Damage] = []
    for kind in KINDS:
        found = damages(kind, s3_run)
        sample += draw.sample(found, min(6, len(found)))
    assert len(sample) >= 40
    for label, changes in sample:
        print(label)
        s3_run.put(changes)
        s3_run.check_refused()
        s3_run.check_passed_over()
        s3_run.mend(changes)
    s3_run.check_sound()


def test_a_range_behind_the_end_is_damage_too(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers 416 where rclone sends nothing."""
    uri = f"s3://bucket/{uuid.uuid4().hex}"
    server, state = connect(moto.url), state_of(0)
    with reached(moto, monkeypatch):
        store = open_checkpoints(uri, retry_seconds=10.0)
        save(store, state_of(5), 4000)
        newer = save(store, state_of(10), 4000)
        for name in (newer.indexes[0].name, "chunk-00000-000001.safetensors"):
            place = f"{uri}/checkpoints/{newer.object_name(name)}"
            sound = server.cat_file(place)
            server.pipe_file(place, b"")
            loaded = load_newest(store, state, lambda line: None)
            assert (loaded.step, loaded.damaged) == (5, frozenset({NEWER}))
            assert_holds(state, 5)
            server.pipe_file(place, sound)
        assert load_newest(store, state, pytest.fail).step == 10
        assert_holds(state, 10)


# --- manifests that somebody has edited and sealed again ---


def other_seal(run: Run, edit: Callable[[dict[str, Any], Run], None]) -> dict[str, bytes | None]:
    values = json.loads(run.files[NEWER.path].splitlines()[0])
    edit(values, run)
    line = json.dumps(values, separators=(",", ":")).encode()
    seal = json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode()
    return {NEWER.path: line + b"\n" + seal + b"\n"}


def set_index(**changes: Any) -> Callable[[dict[str, Any], Run], None]:
    def edit(values: dict[str, Any], run: Run) -> None:
        for key, change in changes.items():
            index = values["indexes"][1]
            index[key] = change(index[key]) if callable(change) else change

    return edit


def set_tensor(name: str, key: str, value: Any) -> Callable[[dict[str, Any], Run], None]:
    def edit(values: dict[str, Any], run: Run) -> None:
        values["tensors"][name][key] = value

    return edit


def swap_names(values: dict[str, Any], run: Run) -> None:
    first, second = values["indexes"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def rename_tensor(values: dict[str, Any], run: Run) -> None:
    values["tensors"]["model.other"] = values["tensors"].pop("model.scale")


WEIGHT = "table.words.weight"
EDITS: dict[str, Callable[[dict[str, Any], Run], None]] = {
    "another step": lambda values, run: values.update(step=11),
    "the older attempt": lambda values, run: values.update(attempt=run.older.attempt),
    "an attempt that never was": lambda values, run: values.update(
        attempt="step-000000010-20260102T030405Z-00000000"
    ),
    "blocks of 1 KiB": lambda values, run: values.update(block_bytes=2**10),
    "an index less": lambda values, run: values["indexes"].pop(),
    "an index twice": lambda values, run: values["indexes"].append(values["indexes"][0]),
    "names of indexes swapped": swap_names,
    "another name of an index": set_index(name="index-00000-0009.json"),
    "another digest": set_index(sha256="0" * 64),
    "a byte more": set_index(size_bytes=lambda size: size + 1),
    "a byte less": set_index(size_bytes=lambda size: size - 1),
    "no bytes": set_index(size_bytes=0),
    "a row more": set_tensor(WEIGHT, "shape", [301, 8]),
    "a row less": set_tensor(WEIGHT, "shape", [299, 8]),
    "wider rows": set_tensor(WEIGHT, "shape", [300, 9]),
    "narrower rows": set_tensor(WEIGHT, "shape", [300, 7]),
    "rows of another shape": set_tensor(WEIGHT, "shape", [300, 4, 2]),
    "rows of no bytes": set_tensor(WEIGHT, "shape", [300, 0]),
    "a wider type": set_tensor(WEIGHT, "dtype", "F64"),
    "a tensor less": lambda values, run: values["tensors"].pop("model.scale"),
    "a tensor more": lambda values, run: values["tensors"].update(
        more={"dtype": "F32", "shape": [3]}
    ),
    "another name of a tensor": rename_tensor,
    "a type of the same width": set_tensor(WEIGHT, "dtype", "I32"),
    "no rows in an index": set_index(rows={}),
    "fewer rows in an index": set_index(
        rows=lambda rows: {name: [first, end - 1] for name, (first, end) in rows.items()}
    ),
    "more rows in an index": set_index(
        rows=lambda rows: {name: [first, end + 9] for name, (first, end) in rows.items()}
    ),
    "more chunks in an index": set_index(num_chunks=lambda count: count + 1),
    "more bytes in an index": set_index(chunk_bytes=lambda size: size + 1),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_sealed_edit_that_contradicts_the_objects_is_not_loaded(run: Run, name: str) -> None:
    changes = other_seal(run, EDITS[name])
    run.put(changes)
    state = state_of(0)
    with pytest.raises(CheckpointError):
        load_checkpoint(run.store, NEWER, state)
    assert_holds(state, 0)
    run.mend(changes)
    run.check_sound()


@pytest.mark.parametrize("name", EDITS)
def test_a_sealed_edit_that_contradicts_the_objects_is_found_by_verify(run: Run, name: str) -> None:
    changes = other_seal(run, EDITS[name])
    run.put(changes)
    with pytest.raises(CheckpointDamaged):
        CheckpointReader(run.store, read_manifest(run.store, NEWER)).verify()
    run.mend(changes)
    run.check_sound()


def test_a_seal_again_of_the_same_is_no_edit(run: Run) -> None:
    changes = other_seal(run, lambda values, run: None)
    assert changes[NEWER.path] == run.files[NEWER.path] == manifest_bytes(run.newer)


# --- what else there is to say ---


def test_a_checkpoint_without_its_manifest_is_none(run: Run) -> None:
    run.put({NEWER.path: None})
    state = state_of(0)
    loaded = load_newest(run.store, state, pytest.fail)
    assert (loaded.step, loaded.damaged) == (5, frozenset())
    assert_holds(state, 5)
    with pytest.raises(CheckpointDamaged, match="does not exist"):
        load_checkpoint(run.store, NEWER, state)
    assert_holds(state, 5)


def test_where_all_are_damaged_nothing_is_loaded(run: Run) -> None:
    chunk = run.named("chunk")[0]
    older_index = next(name for name in run.older_files if "/index-" in name)
    run.put({chunk: None})
    (run.folder / older_index).write_bytes(b"{}")
    state, said = state_of(0), list[str]()
    with pytest.raises(CheckpointError, match=r"(?s)every checkpoint in .*chunk-.*index-.*"):
        load_newest(run.store, state, said.append)
    assert [line.split(" is ")[0] for line in said] == [
        "the checkpoint of step 10", "the checkpoint of step 5",
    ]  # fmt: skip
    assert_holds(state, 0)
    run.mend({chunk: None})
    run.check_sound()


def test_several_damaged_ones_are_passed_over(run: Run) -> None:
    for step in (15, 20):
        manifest = save(run.store, state_of(step), 1000)
        shutil.rmtree(run.folder / OBJECTS / manifest.attempt)
    state, said = state_of(0), list[str]()
    loaded = load_newest(run.store, state, said.append)
    assert (loaded.step, loaded.damaged) == (
        10,
        frozenset({ManifestName(15, 0), ManifestName(20, 0)}),
    )
    assert ["step 20" in said[0], "step 15" in said[1], len(said)] == [True, True, 2]
    assert_holds(state, 10)


ROWS = 30_000


def half(which: int) -> TrainingState:
    """What one of two workers holds of a table whose chunk has several blocks."""
    data = torch.zeros(ROWS // 2, 32)
    table = LiveTensor(data, which * ROWS // 2, ROWS, replicated=False)
    return TrainingState(ONE, 0, {"table.t.weight": table})


def test_every_worker_proves_the_blocks_that_it_needs(tmp_path: Path) -> None:
    whole = torch.randn(ROWS, 32)
    state = TrainingState(ONE, 10, {"table.t.weight": LiveTensor(whole, 0, ROWS, False)})
    store = open_checkpoints(str(tmp_path))
    manifest = save(store, state, 2**26)
    (chunk,) = (tmp_path / "checkpoints" / OBJECTS / manifest.attempt).glob("chunk-*")
    sound = chunk.read_bytes()
    assert len(sound) > 3 * 2**20
    header = len(sound) - whole.nbytes
    border = header + whole.nbytes // 2  # of the workers' rows, within the second block
    for place, needed_by in [
        (0, {0}), (9, {0}), (header, {0}), (2**20 - 1, {0}), (2**20, {0, 1}), (border - 1, {0, 1}),
        (border, {0, 1}), (2**21 - 1, {0, 1}), (2**21, {1}), (3 * 2**20, {1}),
        (len(sound) - 1, {1}),
    ]:  # fmt: skip
        with chunk.open("r+b") as file:
            file.seek(place)
            file.write(bytes([sound[place] ^ 1]))
        for which in (0, 1):
            part = half(which)
            if which in needed_by:
                with pytest.raises(CheckpointDamaged, match=chunk.name):
                    load_checkpoint(store, NEWER, part)
                assert not part.tensors["table.t.weight"].data.any()
            else:
                load_checkpoint(store, NEWER, part)
                expected = whole[which * ROWS // 2 :][: ROWS // 2]
                assert torch.equal(part.tensors["table.t.weight"].data, expected)
        with pytest.raises(CheckpointDamaged, match=chunk.name):
            CheckpointReader(store, manifest).verify()
        chunk.write_bytes(sound)
    CheckpointReader(store, manifest).verify()


@pytest.fixture
def memory_store() -> ObjectStore:
    store = open_checkpoints(f"memory://corruption-{uuid.uuid4().hex}", retry_seconds=0.5)
    save(store, state_of(5), 4000)
    save(store, state_of(10), 4000)
    return store


def answer_for_chunks(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, bytes], bytes]
) -> None:
    """Let the store answer something else for the chunks of step 10."""
    original = MemoryFileSystem.cat_file

    def cat_file(fs: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        data: bytes = original(fs, path, start, end)
        return answer(path, data) if "step-000000010" in path and "chunk" in path else data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)


def test_what_was_damaged_on_its_way_is_read_again(
    memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def damaged_once(path: str, data: bytes) -> bytes:
        first = path not in seen
        seen.add(path)
        return data[:-1] + bytes([data[-1] ^ 1]) if first else data

    answer_for_chunks(monkeypatch, damaged_once)
    state = state_of(0)
    assert load_newest(memory_store, state, pytest.fail).step == 10
    assert len(seen) > 1
    assert_holds(state, 10)


def raising(error: Exception) -> Callable[[str, bytes], bytes]:
    def answer(path: str, data: bytes) -> bytes:
        raise error

    return answer


def test_a_store_that_does_not_answer_is_no_damage(
    memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_for_chunks(monkeypatch, raising(OSError(16, "Please reduce your request rate.")))
    state = state_of(0)
    with pytest.raises(StoreUnavailable):
        load_newest(memory_store, state, pytest.fail)
    assert_holds(state, 0)
    monkeypatch.undo()
    assert load_newest(memory_store, state, pytest.fail).step == 10


def test_a_store_that_denies_access_is_no_damage(
    memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_for_chunks(monkeypatch, raising(PermissionError("The provided token has expired.")))
    state = state_of(0)
    with pytest.raises(StorageError, match="token has expired"):
        load_newest(memory_store, state, lambda line: None)

"""Who can write to a run's folder can write anything, with valid sums: what that can do.

It may make a checkpoint unusable. It runs no code, reaches nothing outside the folder, takes
nothing from other checkpoints, and no more memory and time than its own bytes justify.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dist_embed.checkpoint.catalogue import (
    list_steps,
    name_of_choice,
    open_checkpoints,
    read_manifest,
)
from dist_embed.checkpoint.chunk import byte_view
from dist_embed.checkpoint.export import export_checkpoint
from dist_embed.checkpoint.load import load_checkpoint, load_newest
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointError,
    ManifestName,
    manifest_bytes,
)
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.retention import Pruner
from dist_embed.errors import StorageError
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import keeping
from tests.forks import forking
from tests.stores.two_checkpoints import NEWER, Run, assert_holds, run_at, save, state_of

REFUSED = (CheckpointError, StorageError)
Values = dict[str, Any]
Edit = Callable[[Values], object]

WEIGHT = "table.words.weight"
OLD_ATTEMPT = "step-000000001-20200102T030405Z-0123abcd"
ATTEMPT = "step-000000010-20200102T030405Z-0123abcd"
MARK = "PAYLOAD"


class Pickled:
    """Leaves a file where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._code = f"open({str(folder / MARK)!r}, 'w')"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (self._code,)


class Hostile:
    """A run with sound checkpoints of steps 5 and 10, of which the latter gets forged, and beside
    it what is none of its business: copies of all its objects, where ``../`` would find them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: Run = run_at(str(folder / "run"), folder / "run", 1000)
        self.store: ObjectStore = self.run.store
        self.attempt = self.run.folder / OBJECTS / self.run.newer.attempt
        self.outside = folder / "outside"
        shutil.copytree(self.attempt, self.outside)
        shutil.copytree(self.attempt, self.outside / ATTEMPT)
        shutil.copy(self.run.folder / NEWER.path, self.outside / "manifest")
        (self.outside / "pickle").write_bytes(pickle.dumps(Pickled(self.outside)))
        # Old enough for whoever looks for leftovers.
        for path in self.outside.rglob("*"):
            os.utime(path, (1, 1))
        self.before = self.seen()
        line = self.run.files[NEWER.path].splitlines()[0]
        (index,) = self.run.named("index")
        self.values: Values = json.loads(line)
        self.index: Values = json.loads(self.run.files[index])
        self.index_path = self.run.folder / index
        self.chunk_path = self.run.folder / self.run.named("chunk")[2]
        self.manifest_path = self.run.folder / NEWER.path

    def seen(self) -> dict[str, tuple[int, int]]:
        """All outside the run and in its older checkpoint, with times and sizes."""
        older = self.run.folder / OBJECTS / self.run.older.attempt
        return {
            entry.path: (entry.stat().st_mtime_ns, entry.stat().st_size)
            for folder in (self.outside, self.outside / ATTEMPT, older) if folder.exists()
            for entry in os.scandir(folder)
        }  # fmt: skip

    def fresh_values(self) -> tuple[Values, Values]:
        values, index = json.loads(json.dumps([self.values, self.index]))
        return values, index

    def seal(self, line: bytes) -> None:
        """Publish this as the manifest, with the right sum."""
        digest = hashlib.sha256(line).hexdigest()
        seal = json.dumps({"sha256": digest}).encode()
        self.manifest_path.write_bytes(line + b"\n" + seal + b"\n")

    def forge(self, manifest: Edit | None = None, index: Edit | None = None) -> None:
        """Publish an edited manifest, over an edited index, with the right sums."""
        values, listed = self.fresh_values()
        if index is not None:
            index(listed)
            raw = json.dumps(listed, separators=(",", ":")).encode()
            self.forge_index(raw, values)
        if manifest is not None:
            manifest(values)
        self.seal(json.dumps(values, separators=(",", ":")).encode())

    def forge_index(self, raw: bytes, values: Values) -> None:
        self.index_path.write_bytes(raw)
        entry = values["indexes"][0]
        entry.update(size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())

    def mend(self) -> None:
        """As it was in the beginning."""
        if self.attempt.is_symlink() or self.attempt.is_file() or self.attempt.is_fifo():
            self.attempt.unlink()
        self.attempt.mkdir(exist_ok=True)
        for name, data in self.run.files.items():
            path = self.run.folder / name
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif os.path.lexists(path):
                path.unlink()
            path.write_bytes(data)
        if self.seen() != self.before:  # a test has failed
            for name, data in self.run.older_files.items():
                (self.run.folder / name).parent.mkdir(exist_ok=True)
                (self.run.folder / name).write_bytes(data)
            self.before = self.seen()

    def verify(self) -> None:
        CheckpointReader(self.store, read_manifest(self.store, NEWER)).verify()

    def export(self) -> None:
        output = self.folder / "exported" / "file"
        try:
            export_checkpoint(self.store, read_manifest(self.store, NEWER), output, table=None)
        finally:
            left = [path.name for path in output.parent.iterdir()] if output.parent.exists() else []
            shutil.rmtree(output.parent, ignore_errors=True)
        assert left == ["file"]

    def load(self) -> None:
        """Load the forged one; when that raises, nothing has changed."""
        state = state_of(0)
        try:
            load_checkpoint(self.store, NEWER, state)
        except BaseException:
            assert_holds(state, 0)
            raise

    def load_newest(self) -> None:
        """Load the run: falls back or raises, never anything between."""
        state, said = state_of(0), list[str]()
        try:
            loaded = load_newest(self.store, state, said.append)
        except REFUSED:
            assert_holds(state, 0)
            return
        assert (loaded.step, len(said)) == (5, 1)
        assert_holds(state, 5)

    def prune(self) -> None:
        """Remove the forged one, as superseded by a sound one, and all that looks left behind."""
        newest = save(self.store, state_of(15), 4000)
        try:
            Pruner(
                self.store, keeping(keep_last=1, keep_best=1, keep_every=0, leftover_hours=-1.0)
            ).prune()
            state = state_of(0)
            load_checkpoint(self.store, ManifestName(15, 0), state)
            assert_holds(state, 15)
        finally:
            (self.run.folder / ManifestName(15, 0).path).unlink()
            shutil.rmtree(self.run.folder / OBJECTS / newest.attempt, ignore_errors=True)

    def check_untouched(self) -> None:
        assert self.seen() == self.before
        assert not (self.outside / MARK).exists()

    def check_sound(self) -> None:
        """What nobody has forged loads, and passes everything else."""
        self.mend()
        self.run.check_sound()
        self.export()
        self.check_untouched()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    hostile = Hostile(tmp_path_factory.mktemp("hostile"))
    hostile.check_sound()
    return hostile


@pytest.fixture
def hostile(shared: Hostile) -> Iterator[Hostile]:
    """Mended after each test, and then it loads."""
    yield shared
    shared.mend()
    state = state_of(0)
    assert load_newest(shared.store, state, pytest.fail).step == 10
    assert_holds(state, 10)


def test_a_forgery_that_changes_nothing_is_a_sound_checkpoint(hostile: Hostile) -> None:
    """The forger's seals are right: what is refused below is refused for what it says."""
    hostile.forge(lambda values: None, lambda index: None)
    hostile.run.check_sound()
    hostile.verify()
    hostile.export()


# --- forged manifests and indexes ---

NAMES = [
    "../../../../outside/NAME", "../../../../../outside/NAME", "/etc/passwd", "OUTSIDE/NAME", "..",
    ".", "", "a/b", "./NAME", "..%2f..%2foutside", "NAME\0", "NAME\n", "\0", "~", "~root", "NAME ",
    "\\..\\x", "file:///etc/passwd", "s3://bucket/x", "\u2025/x", "*", "$HOME", "x" * 201,
    "x" * 100_000, None, 5, ["NAME"], {"NAME": 1},
]  # fmt: skip
ATTEMPTS = [
    f"../../../outside/{ATTEMPT}", f"OUTSIDE/{ATTEMPT}", f"{ATTEMPT}/../../../../outside/{ATTEMPT}",
    "..", "", "/", f"{ATTEMPT}\n", f"{ATTEMPT}\0", f"{ATTEMPT}/.", ATTEMPT.replace("10-", "10/"),
    ATTEMPT.replace("0", "\u0660"), f"{ATTEMPT[:-8]}{'a' * 5000}", None, 10, [ATTEMPT],
]  # fmt: skip
NUMBERS: list[Any] = [-1, 2**62, 10**400, 0.5, None]
OTHERS: list[Any] = [2**64, 1e300, True, "1", [1], {}]


def set_to(value: Any, *place: Any) -> Edit:
    """An edit that puts a value there."""

    def edit(values: Values) -> None:
        *folders, last = place
        inner: Any = values
        for key in folders:
            inner = inner[key]
        inner[last] = value

    return edit


def short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:30]}... {len(text)}"


def forged_manifests() -> Iterator[tuple[str, Edit]]:
    for name in NAMES:
        yield f"index {short(name)}", set_to(name, "indexes", 0, "name")
    for attempt in ATTEMPTS:
        yield f"attempt {short(attempt)}", set_to(attempt, "attempt")
    for number in NUMBERS:
        for place in (("step",), ("num_workers",), ("block_bytes",), ("indexes", 0, "size_bytes"),
                      ("indexes", 0, "num_chunks"), ("indexes", 0, "chunk_bytes"),
                      ("tensors", WEIGHT, "shape", 0), ("row_multipliers", "words"),
                      ("indexes", 0, "rows", WEIGHT, 0)):  # fmt: skip
            yield f"{place[-1]} {short(number)}", set_to(number, *place)
    for number in OTHERS:
        yield f"step {short(number)}", set_to(number, "step")
    for size in (0, 1, 2**26):
        yield f"size_bytes {size}", set_to(size, "indexes", 0, "size_bytes")
    for size in (0, 1, 1023, 2**26 + 1):
        yield f"block_bytes {size}", set_to(size, "block_bytes")
    for shape in [*SHAPES, [300, -8], [1] * 9, [[300], 8], [300.0, 8], "300"]:
        yield f"shape {short(shape)}", set_to(shape, "tensors", WEIGHT, "shape")
    for dtype in ("F31", "O", "object", "torch.float32", "", None, 4, ["F32"]):
        yield f"dtype {dtype!r}", set_to(dtype, "tensors", WEIGHT, "dtype")
    for digest in ("", "0" * 64, "F" * 64, "0" * 63, "0" * 65, "0" * 10**6, None, 0):
        yield f"sha256 {short(digest)}", set_to(digest, "indexes", 0, "sha256")
    for rows in ([], [0], [0, 1, 2], [-1, 5], "0-5", {"0": 5}):
        yield f"rows {rows}", set_to(rows, "indexes", 0, "rows", WEIGHT)
    for key, value in (("tensors", {}), ("tensors", []), ("tensors", None), ("indexes", []),
                       ("indexes", {}), ("indexes", [None]), ("scalars", []), ("scalars", "{}"),
                       ("__class__", "x"), ("format", None), ("format", 1), ("format", "2"),
                       ("format", 10**12), ("created", "x" * 41),
                       ("fingerprint", 10**4)):  # fmt: skip
        yield f"{key} {value!r}", set_to(value, key)
    yield (
        "a tensor of no name",
        lambda values: values["tensors"].update({"": values["tensors"][WEIGHT]}),
    )
    yield "an index twice", lambda values: values["indexes"].append(values["indexes"][0])
    yield (
        "another index",
        lambda values: values["indexes"].append(
            values["indexes"][0] | {"name": "index-00001-0000.json"}
        ),
    )


SHAPES: list[Any] = [
    [2**62 - 1], [2**62 - 1, 8], [300, 2**50], [2**62 - 1] * 8, [2**31, 8], [1, 2**40], [2**33],
    [300] * 8, [0], [], [0, 8], [300, 0],
]  # fmt: skip


def forged_indexes() -> Iterator[tuple[str, Edit]]:
    for name in NAMES:
        yield f"chunk {short(name)}", set_to(name, "chunks", 2, "name")
    for number in NUMBERS:
        for place in (("chunks", 2, "size_bytes"), *(("chunks", 2, "pieces", 0, *key) for key in
                      (["first_row"], ["shape", 0], ["shape", 1], ["offset"]))):  # fmt: skip
            yield f"{place[-1]} {short(number)}", set_to(number, *place)
    for number in OTHERS:
        yield f"offset {short(number)}", set_to(number, "chunks", 2, "pieces", 0, "offset")
    for number in (2**61, 2**62 - 1, 10**5):
        for key in (["first_row"], ["shape", 0], ["offset"]):
            yield f"{key[0]} {number}", set_to(number, "chunks", 2, "pieces", 0, *key)
        yield f"size_bytes {number}", set_to(number, "chunks", 2, "size_bytes")
    for size in (0, 1, 1023):
        yield f"size_bytes {size}", set_to(size, "chunks", 2, "size_bytes")
    blocks: Any
    for blocks in ("", "0" * 64, "0" * 63, "z" * 64, "0" * 640, "\u0660" * 64, None, [], 0):
        yield f"blocks {short(blocks)}", set_to(blocks, "chunks", 2, "blocks")

        def with_sum(index: Values, blocks: Any = blocks) -> None:
            chunk = index["chunks"][2]
            digests = bytes.fromhex(blocks) if str(blocks).strip("0") == "" else b""
            chunk.update(blocks=blocks, sha256=hashlib.sha256(digests).hexdigest())

        if isinstance(blocks, str) and len(blocks) % 2 == 0:
            yield f"blocks {short(blocks)} and their sum", with_sum
    for tensor in ("", "table.words.momentum1", "no such", "__class__", "x" * 401, None, 5):
        yield f"piece of {short(tensor)}", set_to(tensor, "chunks", 2, "pieces", 0, "tensor")
    pieces: Any
    for pieces in ([], [{}], [None], {}, None, "x", [[]]):
        yield f"pieces {pieces!r}", set_to(pieces, "chunks", 2, "pieces")
    chunks: Any
    for chunks in ([], [{}], [None], {}, None, "x"):
        yield f"chunks {chunks!r}", set_to(chunks, "chunks")
    yield "a key more", set_to(1, "__init__")
    yield "a key more in a chunk", set_to(1, "chunks", 2, "object")
    yield "a chunk twice", lambda index: index["chunks"].append(index["chunks"][2])
    yield "a chunk less", lambda index: index["chunks"].pop(2)

    def piece(index: Values) -> Values:
        found: Values = index["chunks"][2]["pieces"][0]
        return found

    yield "rows twice", lambda index: index["chunks"][2]["pieces"].append(dict(piece(index)))
    yield (
        "rows of its neighbour",
        lambda index: piece(index).update(first_row=index["chunks"][1]["pieces"][0]["first_row"]),
    )
    for label, more in (("a row too few", -1), ("a row too many", 1)):
        yield (
            label,
            lambda index, more=more: piece(index).update(
                shape=[piece(index)["shape"][0] + more, *piece(index)["shape"][1:]]
            ),
        )
    yield "no rows", set_to(0, "chunks", 2, "pieces", 0, "shape", 0)
    yield "rows of other lengths", set_to([3], "chunks", 2, "pieces", 0, "shape")
    yield (
        "rows that overlap by one",
        lambda index: piece(index).update(first_row=piece(index)["first_row"] - 1),
    )
    yield (
        "rows that reach out of the chunk",
        lambda index: piece(index).update(offset=piece(index)["offset"] + 1),
    )


def ids_of(forgeries: Callable[[], Iterator[tuple[str, Edit]]]) -> list[Any]:
    return [pytest.param(edit, id=name) for name, edit in forgeries()]


def placed(edit: Edit, hostile: Hostile) -> Edit:
    """The edit with NAME and OUTSIDE in strings replaced, so that the name leads to the object."""

    def replaced(value: Any, name: str) -> Any:
        if isinstance(value, str) and len(value) < 200:
            return value.replace("OUTSIDE", str(hostile.outside)).replace("NAME", name)
        return value

    def edit_then_place(values: Values) -> None:
        edit(values)
        if isinstance(values.get("attempt"), str):
            values["attempt"] = replaced(values["attempt"], "")
        for key, path in (("indexes", hostile.index_path), ("chunks", hostile.chunk_path)):
            entries = values.get(key)
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict):
                    entry["name"] = replaced(entry.get("name"), path.name)

    return edit_then_place


def attack(hostile: Hostile) -> None:
    """All that anybody does with a run's checkpoints; the forged one is refused by each."""
    for entry in (hostile.load, hostile.verify):
        with pytest.raises(REFUSED):
            entry()
    hostile.load_newest()
    hostile.check_untouched()


@pytest.mark.parametrize("edit", ids_of(forged_manifests))
def test_forged_manifests_are_refused(hostile: Hostile, edit: Edit) -> None:
    hostile.forge(placed(edit, hostile))
    attack(hostile)


@pytest.mark.parametrize("edit", ids_of(forged_indexes))
def test_forged_indexes_are_refused(hostile: Hostile, edit: Edit) -> None:
    hostile.forge(index=placed(edit, hostile))
    attack(hostile)


def sample(forgeries: Callable[[], Iterator[tuple[str, Edit]]]) -> list[tuple[str, Edit]]:
    """All forged names, and some of the rest."""
    named = ("index ", "attempt ", "chunk ")
    return [
        forgery for number, forgery in enumerate(forgeries())
        if forgery[0].startswith(named) or number % 8 == 0
    ]  # fmt: skip


def test_pruning_takes_nothing_that_a_forged_one_names(hostile: Hostile) -> None:
    for name, edit in sample(forged_manifests):
        print(name)
        hostile.forge(placed(edit, hostile))
        hostile.prune()
        hostile.check_untouched()
        hostile.mend()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=short)
@pytest.mark.parametrize("name", [WEIGHT, "model.out.weight"])
def test_forged_shapes_are_not_exported(hostile: Hostile, name: str, shape: list[int]) -> None:
    hostile.forge(set_to(shape, "tensors", name, "shape"))
    with pytest.raises(REFUSED):
        hostile.export()


def test_a_table_without_rows_is_not_exported(hostile: Hostile) -> None:
    hostile.forge(set_to(1, "row_multipliers", "tags"))
    manifest = read_manifest(hostile.store, NEWER)
    with pytest.raises(REFUSED):
        export_checkpoint(hostile.store, manifest, hostile.folder / "o", table="tags")
    assert not (hostile.folder / "o").exists()


def pickled_numbers(hostile: Hostile) -> None:
    """A pickle with the right sums where the numbers of some rows should be."""

    def edit(index: Values) -> None:
        chunk = index["chunks"][2]
        sound = hostile.run.files[name_of_chunk(hostile)]
        code = (hostile.outside / "pickle").read_bytes()
        start = chunk["pieces"][0]["offset"]
        data = sound[:start] + code + sound[start + len(code) :]
        assert len(data) == len(sound)
        digest = hashlib.sha256(data).digest()
        chunk.update(blocks=digest.hex(), sha256=hashlib.sha256(digest).hexdigest())
        hostile.chunk_path.write_bytes(data)

    hostile.forge(index=edit)


def name_of_chunk(hostile: Hostile) -> str:
    return hostile.chunk_path.relative_to(hostile.run.folder).as_posix()


def test_a_pickle_with_right_sums_is_just_numbers(hostile: Hostile) -> None:
    pickled_numbers(hostile)
    hostile.verify()
    state = state_of(0)
    assert load_newest(hostile.store, state, pytest.fail).step == 10
    code = (hostile.outside / "pickle").read_bytes()
    assert any(code in bytes(byte_view(t.data)) for t in state.tensors.values())
    hostile.check_untouched()


DEEP = b"[" * 10_000 + b"]" * 10_000


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"null", b"\0" * 100, b"\xff\xfe{}", DEEP, b'{"step":' + DEEP + b"}",
     b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'"' + b"x" * 10**6, b"9" * 10**5,
     pickle.dumps({"step": 10}).replace(b"\n", b" ")],
    ids=lambda line: ascii(line[:12]),
)  # fmt: skip
def test_what_is_no_manifest_is_refused_whatever_its_seal(hostile: Hostile, line: bytes) -> None:
    hostile.seal(line)
    attack(hostile)


@pytest.mark.parametrize(
    "scalars", ["NaN", "[" * 5000 + "]" * 5000, "1e999", '"\\ud800"', "9" * 5000]
)
def test_forged_scalars_are_refused(hostile: Hostile, scalars: str) -> None:
    values, _ = hostile.fresh_values()
    values["scalars"]["validation_loss"] = "@"
    line = json.dumps(values, separators=(",", ":"))
    hostile.seal(line.replace('"@"', scalars).encode())
    attack(hostile)


@pytest.mark.parametrize("loss", [10**400, -(10**400), "1", [], {}, None, ["x"] * 1000], ids=short)
def test_a_forged_loss_stops_nobody(hostile: Hostile, loss: Any) -> None:
    """It is a sound checkpoint; the losses of all are looked at to prune and to choose one."""
    hostile.forge(set_to(loss, "scalars", "validation_loss"))
    hostile.verify()
    assert name_of_choice(str(hostile.folder / "run"), None).step in (5, 10)
    assert Pruner(hostile.store, keeping(0, 9, 0, 1.0)).prune(dry=True).leftovers == []


# --- what lies where an object should ---


def out(path: Path, hostile: Hostile) -> None:
    """A link to the same bytes outside."""
    twins = {hostile.manifest_path: "manifest", hostile.attempt: "."}
    path.symlink_to(hostile.outside / twins.get(path, path.name))


def out_relative(path: Path, hostile: Hostile) -> None:
    out(path, hostile)
    target = os.path.relpath(path.readlink(), path.parent)
    path.unlink()
    path.symlink_to(target)


def loop(path: Path, hostile: Hostile) -> None:
    path.symlink_to(path.name)


def device(path: Path, hostile: Hostile) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path, hostile: Hostile) -> None:
    os.mkfifo(path)


def folder(path: Path, hostile: Hostile) -> None:
    path.mkdir()


def pickled(path: Path, hostile: Hostile) -> None:
    shutil.copy(hostile.outside / "pickle", path)


def huge(path: Path, hostile: Hostile) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def nothing(path: Path, hostile: Hostile) -> None:
    pass


Replace = Callable[[Path, Hostile], None]
REPLACEMENTS: list[Replace] = [
    out, out_relative, loop, device, pipe, folder, pickled, huge,
]  # fmt: skip
KINDS = ["manifest_path", "index_path", "chunk_path"]


def put_in_place(hostile: Hostile, kind: str, replace: Replace) -> None:
    path: Path = getattr(hostile, kind)
    path.unlink()
    replace(path, hostile)


def falls_back(hostile: Hostile) -> None:
    state, said = state_of(0), list[str]()
    loaded = load_newest(hostile.store, state, said.append)
    assert (loaded.step, loaded.damaged) == (5, frozenset({NEWER}))
    assert_holds(state, 5)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replace", REPLACEMENTS, ids=lambda replace: replace.__name__)
def test_what_is_no_object_is_damage(hostile: Hostile, kind: str, replace: Replace) -> None:
    put_in_place(hostile, kind, replace)
    attack(hostile)
    falls_back(hostile)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("replace", [loop, folder, pipe, pickled, nothing, out],
                         ids=lambda replace: replace.__name__)  # fmt: skip
def test_an_attempt_that_is_no_folder_of_ours_is_damage(hostile: Hostile, replace: Replace) -> None:
    shutil.rmtree(hostile.attempt)
    replace(hostile.attempt, hostile)
    attack(hostile)
    falls_back(hostile)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "replace"),
    [(kind, replace) for kind in [*KINDS, "attempt"]
     for replace in (out, loop, pipe, folder, pickled)],
)  # fmt: skip
def test_what_is_no_object_does_not_keep_others_from_being_pruned(
    hostile: Hostile, kind: str, replace: Replace
) -> None:
    if kind == "attempt":
        shutil.rmtree(hostile.attempt)
        hostile.attempt.touch()
    put_in_place(hostile, kind, replace)
    hostile.prune()
    hostile.check_untouched()


# --- what pruning may not take ---


@pytest.fixture
def own(tmp_path: Path) -> ObjectStore:
    """A run of its own, in a folder ``run``, with a sound checkpoint of step 5."""
    store = open_checkpoints(str(tmp_path / "run"))
    save(store, state_of(5), 4000)
    return store


def prune(store: ObjectStore) -> None:
    Pruner(store, keeping(1, 0, 0, leftover_hours=1.0)).prune()


def assert_loads(store: ObjectStore, step: int) -> None:
    state = state_of(0)
    assert load_newest(store, state, pytest.fail).step == step
    assert_holds(state, step)


def test_an_older_manifest_cannot_take_the_objects_of_another(own: ObjectStore) -> None:
    """It names their attempt as its own, and is pruned."""
    newer = save(own, state_of(10), 4000)
    line = manifest_bytes(newer).splitlines()[0].replace(b'"step":10,', b'"step":7,')
    seal = json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode()
    (Path(own.uri) / ManifestName(7, 0).path).write_bytes(line + b"\n" + seal + b"\n")
    prune(own)
    assert_loads(own, 10)


def test_a_copy_of_a_manifest_as_the_next_generation_takes_nothing(own: ObjectStore) -> None:
    shutil.copy(Path(own.uri) / ManifestName(5, 0).path, Path(own.uri) / ManifestName(5, 1).path)
    prune(own)
    assert_loads(own, 5)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's old files."""
    found = tmp_path / "outside"
    for name in ("x", f"{OLD_ATTEMPT}/y"):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text("mine")
        os.utime(found / name, (1, 1))
    return found


def assert_still_there(outside: Path) -> None:
    assert [(outside / name).read_text() for name in ("x", f"{OLD_ATTEMPT}/y")] == ["mine"] * 2


def link(place: Path, target: Path) -> None:
    place.symlink_to(target)
    os.utime(place, (1, 1), follow_symlinks=False)


def test_a_leftover_that_is_a_link_is_not_followed(own: ObjectStore, outside: Path) -> None:
    link(Path(own.uri) / OBJECTS / OLD_ATTEMPT, outside)
    with suppress(OSError):
        prune(own)
    assert_still_there(outside)
    assert_loads(own, 5)


def prune_under_watch(run: str) -> list[str]:
    store = open_checkpoints(run)
    leftover = Path(store.uri) / OBJECTS / OLD_ATTEMPT
    leftover.mkdir()
    prune(store)  # what is imported when it is first needed has been
    link(leftover, Path(run).parent / "outside")
    watch = Watch([Path(run)])
    watch.active = True
    with suppress(OSError):
        prune(store)
    watch.active = False
    return watch.found


def test_a_leftover_that_is_a_link_is_not_listed(own: ObjectStore, outside: Path) -> None:
    outcome = apart(prune_under_watch, str(Path(own.uri).parent))
    assert outcome.error == ""
    assert outcome.value == []


def test_links_in_a_leftover_are_not_followed(own: ObjectStore, outside: Path) -> None:
    leftover = Path(own.uri) / OBJECTS / OLD_ATTEMPT
    leftover.mkdir()
    link(leftover / "file", outside / "x")
    link(leftover / "folder", outside)
    link(leftover / "nowhere", outside / "nowhere")
    prune(own)
    assert not leftover.exists()
    assert_still_there(outside)
    assert_loads(own, 5)


def test_objects_elsewhere_are_not_pruned(own: ObjectStore, outside: Path) -> None:
    objects = Path(own.uri) / OBJECTS
    shutil.rmtree(objects)
    objects.symlink_to(outside)
    with suppress(*REFUSED, OSError):
        prune(own)
    assert_still_there(outside)


def test_a_checkpoint_is_not_written_elsewhere(own: ObjectStore, outside: Path) -> None:
    objects = Path(own.uri) / OBJECTS
    shutil.rmtree(objects)
    objects.symlink_to(outside)
    with suppress(*REFUSED, OSError):
        save(own, state_of(10), 4000)
    assert sorted(path.name for path in outside.iterdir()) == [OLD_ATTEMPT, "x"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["link", "file", "pipe", "no date", "other digits"])
def test_a_strange_leftover_does_not_keep_others_from_being_pruned(
    own: ObjectStore, outside: Path, what: str
) -> None:
    objects = Path(own.uri) / OBJECTS
    strange = objects / OLD_ATTEMPT
    if what == "link":
        link(strange, outside)
    elif what == "file":
        strange.write_text("x")
        os.utime(strange, (1, 1))
    elif what == "pipe":
        os.mkfifo(strange)
        os.utime(strange, (1, 1))
    elif what == "no date":
        (objects / OLD_ATTEMPT.replace("20200102", "99999999")).mkdir()
    else:
        (objects / OLD_ATTEMPT.replace("2020", "\u0662\u0660\u0662\u0660")).mkdir()
    later = objects / OLD_ATTEMPT.replace("000001", "000002")
    later.mkdir()
    save(own, state_of(10), 4000)
    prune(own)
    assert list_steps(str(Path(own.uri).parent)) == [10]
    assert not later.exists()
    assert_still_there(outside)


# --- memory and time, in a process of its own ---

GUARD_BYTES = 3 * 2**30  # stops what would take the machine along


class Outcome:
    """What came of a call in another process."""

    error = "the process was killed, or ran too long"
    refused = False
    grown_bytes = 0
    cpu_seconds = 0.0
    value: Any = None


def _memory(key: str) -> int:
    """A size in bytes, from what the system says of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key + ":"))


def _serve(answers: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    outcome = Outcome()
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + GUARD_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before, began = _memory("VmRSS"), time.process_time()
    try:
        outcome.value = function(*args)
        outcome.error = ""
    except BaseException as exc:
        outcome.refused = isinstance(exc, REFUSED)
        outcome.error = "".join(traceback.format_exception(exc))[-2000:]
    outcome.grown_bytes = _memory("VmHWM") - before
    outcome.cpu_seconds = time.process_time() - began
    answers.send(vars(outcome))


def apart(function: Callable[..., Any], *args: Any) -> Outcome:
    """``function(*args)`` in a process of its own, which has everything imported."""
    context = forking()
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    outcome = Outcome()
    try:
        with suppress(EOFError):
            if mine.poll(300):
                vars(outcome).update(mine.recv())
    finally:
        process.kill()
        process.join()
    return outcome


def load_apart(uri: str) -> None:
    load_checkpoint(open_checkpoints(uri), NEWER, state_of(0))


def verify_apart(uri: str) -> None:
    store = open_checkpoints(uri)
    CheckpointReader(store, read_manifest(store, NEWER)).verify()


MIB = 2**20


def many(key: str, count: int, entry: bytes) -> Callable[[Hostile], int]:
    """A manifest whose ``key`` is a list of ``count`` times the same."""

    def prepare(hostile: Hostile) -> int:
        values, _ = hostile.fresh_values()
        values[key] = "@"
        line = json.dumps(values, separators=(",", ":")).encode()
        line = line.replace(b'"@"', b"[" + b",".join([entry] * count) + b"]")
        hostile.seal(line)
        return len(line)

    return prepare


def many_scalars(hostile: Hostile) -> int:
    values, _ = hostile.fresh_values()
    values["scalars"] = {"x": [[]] * 500_000}
    values["step"] = 11  # so that it is refused, after all of it has been parsed
    line = json.dumps(values, separators=(",", ":")).encode()
    hostile.seal(line)
    return len(line)


def many_pieces(count: int, **changes: int) -> Callable[[Hostile], int]:
    def prepare(hostile: Hostile) -> int:
        def edit(index: Values) -> None:
            piece = index["chunks"][2]["pieces"][0]
            index["chunks"][2]["pieces"] = [piece | changes if changes else {}] * count

        hostile.forge(index=edit)
        return hostile.index_path.stat().st_size

    return prepare


def one_index_often(hostile: Hostile) -> int:
    many_pieces(1000, first_row=0)(hostile)
    values = json.loads(hostile.manifest_path.read_bytes().splitlines()[0])
    values["indexes"] *= 150
    line = json.dumps(values, separators=(",", ":")).encode()
    hostile.seal(line)
    return len(line) + hostile.index_path.stat().st_size


def larger_than_any(hostile: Hostile) -> int:
    hostile.seal(b"{" + b" " * (100 * MIB) + b"}")
    return 0


def deep(hostile: Hostile) -> int:
    line = b'{"format":2,"step":' + b"[" * (8 * MIB)
    hostile.seal(line)
    return len(line)


def sparse(kind: str) -> Callable[[Hostile], int]:
    def prepare(hostile: Hostile) -> int:
        put_in_place(hostile, kind, huge)
        return 0

    return prepare


def huge_blocks(hostile: Hostile) -> int:
    """A chunk of a GiB in blocks of 64 MiB."""

    def edit(index: Values) -> None:
        digests = bytes(32 * 16)
        index["chunks"][2].update(
            size_bytes=2**30, blocks=digests.hex(), sha256=hashlib.sha256(digests).hexdigest()
        )

    hostile.forge(lambda values: values.update(block_bytes=2**26), edit)
    values = json.loads(hostile.manifest_path.read_bytes().splitlines()[0])
    values["indexes"][0]["chunk_bytes"] += 2**30 - len(hostile.run.files[name_of_chunk(hostile)])
    hostile.seal(json.dumps(values, separators=(",", ":")).encode())
    hostile.chunk_path.unlink()
    with hostile.chunk_path.open("wb") as file:
        file.truncate(2**30)
    return 0


# What to write, and how much memory on top of that of the bytes themselves. A parsed manifest or
# index may take some times its bytes: it consists of Python's objects.
FLOODS: dict[str, tuple[Callable[[Hostile], int], int]] = {
    "a manifest of 100 MiB": (larger_than_any, 80 * MIB),
    "a manifest of a TiB": (sparse("manifest_path"), 80 * MIB),
    "an index of a TiB": (sparse("index_path"), 64 * MIB),
    "a chunk of a TiB": (sparse("chunk_path"), 64 * MIB),
    "blocks of 64 MiB": (huge_blocks, 400 * MIB),
    "deep lists": (deep, 64 * MIB),
    "many scalars": (many_scalars, 64 * MIB),
    "many wrong indexes": (many("indexes", 100_000, b"0"), 64 * MIB),
    "many wrong pieces": (many_pieces(30_000), 64 * MIB),
    "many pieces": (many_pieces(30_000, first_row=0), 64 * MIB),
    "one index often": (one_index_often, 64 * MIB),
}
TIMES_ITS_BYTES = 64


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_takes_bounded_memory_and_time(hostile: Hostile, flood: str) -> None:
    prepare, most = FLOODS[flood]
    most += TIMES_ITS_BYTES * prepare(hostile)
    for function in (load_apart, verify_apart):
        outcome = apart(function, str(hostile.folder / "run"))
        assert outcome.refused, outcome.error
        assert outcome.grown_bytes < most
        assert outcome.cpu_seconds < 10


def test_a_sound_one_takes_its_buffers(hostile: Hostile) -> None:
    for function in (load_apart, verify_apart):
        outcome = apart(function, str(hostile.folder / "run"))
        assert outcome.error == ""
        assert outcome.grown_bytes < 48 * MIB  # four threads have buffers of 8 MiB


def take_memory(size: int) -> None:
    bytearray(size)[::4096] = b"x" * (size // 4096)


def test_memory_that_is_taken_is_seen() -> None:
    assert apart(take_memory, 50 * MIB).grown_bytes > 49 * MIB
    greedy = apart(take_memory, 2 * GUARD_BYTES)
    assert "MemoryError" in greedy.error
    assert not greedy.refused


# --- files and code, in a process that notes both ---

CODE = {
    "exec", "import", "marshal.loads", "pickle.find_class", "code.__new__", "function.__new__",
    "ctypes.dlopen", "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "socket.connect", "socket.bind",
}  # fmt: skip
READS = {"os.listdir", "os.scandir", "os.walk", "glob.glob"}
# With the places of the paths among the arguments, and of the folders that they are relative to.
WRITES: dict[str, list[tuple[int, int | None]]] = {
    "os.remove": [(0, 1)], "os.rmdir": [(0, 1)], "os.mkdir": [(0, 2)], "os.chmod": [(0, 2)],
    "os.utime": [(0, 3)], "os.chown": [(0, 3)], "os.symlink": [(1, 2)],
    "os.rename": [(0, 2), (1, 3)], "os.link": [(1, 3)], "os.truncate": [(0, None)],
    "shutil.rmtree": [(0, None)], "tempfile.mkstemp": [(0, None)],
}  # fmt: skip
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """An audit hook, which cannot be removed: notes code that is run, and paths that lead out of
    ``inside``. Python's own files may be read.
    """

    def __init__(self, inside: list[Path]) -> None:
        libraries = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])]
        self._writable = [os.path.realpath(path) for path in inside]
        self._readable = [*self._writable, *map(os.path.realpath, libraries)]
        # Opened, and no more, so that the names of the folders in them are durable.
        self._synced = {os.path.dirname(path) for path in self._writable}
        self.active = False
        self.found: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in CODE or (event == "compile" and MARK in str(args[0])):
            self.found.append(f"{event} {args!r}"[:300])
        elif event == "open":
            path, mode, flags = args
            writing = bool((flags or 0) & TO_WRITE) or any(c in (mode or "") for c in "wax+")
            if not writing and isinstance(path, str) and os.path.realpath(path) in self._synced:
                return
            self._check(event, path, None, self._writable if writing else self._readable)
        elif event in READS and args:
            self._check(event, args[0], None, self._readable)
        for place, folder in WRITES.get(event, []):
            at = args[folder] if folder is not None and folder < len(args) else None
            self._check(event, args[place], at, self._writable, parent=True)

    def _check(
        self, event: str, path: Any, at: Any, allowed: list[str], *, parent: bool = False
    ) -> None:
        if isinstance(path, int) or path is None:
            return  # opened before
        path = os.fsdecode(path)
        if isinstance(at, int) and at >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), path)
        if not os.path.isabs(path):
            return  # below an open folder, on the way through a tree; names here are absolute
        # What is removed or renamed is a link itself, what is opened is where it leads.
        folder, name = os.path.split(path)
        real = os.path.join(os.path.realpath(folder), name) if parent else os.path.realpath(path)
        if not any(real == place or real.startswith(place + os.sep) for place in allowed):
            self.found.append(f"{event} {path}")


def evil(folder: str, what: str) -> list[str]:
    """Something that must be noted."""
    inside, elsewhere = Path(folder) / "in", Path(folder) / "out"
    inside.mkdir()
    elsewhere.mkdir()
    (elsewhere / "x").write_text("x")
    (inside / "link").symlink_to(elsewhere / "x")
    data = pickle.dumps(Pickled(elsewhere))
    watch = Watch([inside])
    watch.active = True
    with suppress(OSError):
        (inside / "fine").write_text("x")
        (inside / "fine").unlink()
        if what == "read":
            (elsewhere / "x").read_text()
        elif what == "follow":
            (inside / "link").read_text()
        elif what == "write":
            (elsewhere / "y").write_text("y")
        elif what == "remove":
            (elsewhere / "x").unlink()
        elif what == "remove a tree":
            shutil.rmtree(elsewhere)
        elif what == "list":
            os.listdir(elsewhere)
        elif what == "import":
            __import__("this")
        elif what == "unpickle":
            pickle.loads(data)
        elif what == "evaluate":
            eval(f"'{MARK}'")
    watch.active = False
    return watch.found


@pytest.mark.parametrize(
    "what", ["nothing", "read", "follow", "write", "remove", "remove a tree", "list", "import",
             "unpickle", "evaluate"],
)  # fmt: skip
def test_the_watch_sees_what_it_is_for(tmp_path: Path, what: str) -> None:
    outcome = apart(evil, str(tmp_path), what)
    assert outcome.error == ""
    assert bool(outcome.value) == (what != "nothing"), outcome.value


def attacked_under_watch(path: str) -> tuple[int, list[str]]:
    """Everything above with everything done to it; how much that was, and what was noted."""
    hostile = Hostile(Path(path))
    hostile.check_sound()
    hostile.prune()  # what is imported when it is first needed has been
    attacks: list[tuple[str, Callable[[], None]]] = [
        *((name, partial(hostile.forge, placed(edit, hostile)))
          for name, edit in sample(forged_manifests)),
        *((name, partial(hostile.forge, None, placed(edit, hostile)))
          for name, edit in sample(forged_indexes)),
        *((f"{kind}: {replace.__name__}", partial(put_in_place, hostile, kind, replace))
          for kind in KINDS for replace in REPLACEMENTS),
        ("deep", lambda: hostile.seal(DEEP)),
        ("numbers that are a pickle", lambda: pickled_numbers(hostile)),
    ]  # fmt: skip
    entries = (hostile.load, hostile.load_newest, hostile.verify, hostile.export, hostile.prune)
    watch = Watch([hostile.folder / "run", hostile.folder / "exported"])
    for name, prepare in attacks:
        hostile.mend()
        prepare()
        for entry in entries:
            noted = len(watch.found)
            watch.active = True
            with suppress(Exception):  # that the right ones are raised is tested above
                entry()
            watch.active = False
            watch.found[noted:] = [f"{name}: {text}" for text in watch.found[noted:]]
    hostile.check_sound()
    return len(attacks) * len(entries), watch.found


def test_nothing_outside_is_touched_and_no_code_is_run(tmp_path: Path) -> None:
    outcome = apart(attacked_under_watch, str(tmp_path))
    assert outcome.error == ""
    count, noted = outcome.value
    assert noted == []
    assert count > 500

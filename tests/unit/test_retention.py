from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.checkpoint.catalogue import (
    list_steps,
    manifest_names,
    open_checkpoints,
    read_manifest,
)
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointError,
    Manifest,
    ManifestName,
    TensorInfo,
)
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.retention import Pruned, Pruner, kept_steps
from dist_embed.checkpoint.write import Description
from dist_embed.errors import StoreUnavailable
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import keeping, write_checkpoint

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]
NEWEST = keeping(keep_last=1, keep_best=0, keep_every=0, leftover_hours=1.0)
OLD = "step-000000003-20200102T030405Z-0123abcd"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_checkpoints(str(tmp_path))


def save(
    store: ObjectStore,
    step: int,
    loss: float | None = None,
    damaged: frozenset[ManifestName] = frozenset(),
) -> Manifest:
    scalars: dict[str, Any] = {} if loss is None else {"validation_loss": loss}
    tensors = {"model.x": TensorInfo(dtype="F32", shape=[4])}
    return write_checkpoint(
        store, Description(step, "", tensors, {}, json.dumps(scalars)),
        [Rows("model.x", 0, torch.full((4,), float(step)))], damaged=damaged,
    )  # fmt: skip


def attempts(store: ObjectStore) -> list[str]:
    return store.names(OBJECTS)


def steps(store: ObjectStore) -> list[int]:
    return [name.step for name in manifest_names(store)]


def attempt_of(store: ObjectStore, name: str, *, hours: float) -> Path:
    """Objects without a manifest, the youngest of this age."""
    folder = Path(store.uri) / OBJECTS / name
    for number in range(2):
        store.put(f"{OBJECTS}/{name}/chunk-{number}", [b"x"])
        written = time.time() - 3600 * hours * (1 + number)
        os.utime(folder / f"chunk-{number}", (written, written))
    return folder


def begun(hours_ago: float, step: int = 3) -> str:
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - 3600 * hours_ago))
    return f"step-{step:09d}-{at}-0123abcd"


def spoil(store: ObjectStore, name: ManifestName) -> None:
    path = Path(store.uri) / name.path
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("retention", "kept"),
    [((1, 0, 0), {50}), ((3, 0, 0), {30, 40, 50}), ((9, 0, 0), {10, 20, 30, 40, 50}),
     ((0, 1, 0), {20}), ((0, 3, 0), {20, 10, 50}), ((0, 9, 0), {20, 10, 50, 40}),
     ((0, 0, 20), {20, 40}), ((1, 1, 30), {50, 20, 30}), ((0, 0, 0), {50}),
     ((0, 0, 7), {50})],
)  # fmt: skip
def test_what_stays(retention: tuple[int, int, int], kept: set[int]) -> None:
    losses = {40: 4.0, 10: 1.0, 20: 0.5, 30: None, 50: 2.0}
    assert kept_steps(keeping(*retention, leftover_hours=1.0), losses) == kept


def test_the_newest_stays_where_no_loss_is_known() -> None:
    assert kept_steps(keeping(0, 1, 0, 1.0), {100: None, 200: None}) == {200}


def test_of_equal_losses_the_earlier_stays() -> None:
    assert kept_steps(keeping(0, 1, 0, 1.0), {1: 2.0, 2: 1.0, 3: 1.0}) == {2}


@given(
    st.dictionaries(st.integers(0, 60), st.none() | st.floats(0, 9), max_size=12),
    st.integers(0, 4), st.integers(0, 4), st.integers(0, 7),
)  # fmt: skip
def test_the_rules_add_up(
    losses: dict[int, float | None], last: int, best: int, every: int
) -> None:
    kept = kept_steps(keeping(last, best, every, 1.0), losses)
    assert kept <= set(losses)
    assert kept or not losses
    gone = set(losses) - kept
    assert len(kept) >= min(last, len(losses))
    assert all(sum(other > step for other in losses) >= last for step in gone)
    known = {step: loss for step, loss in losses.items() if loss is not None}
    for step in gone & set(known):
        assert sum(loss <= known[step] for other, loss in known.items() if other != step) >= best
    assert not every or all(step % every for step in gone)


def test_what_is_pruned_is_not_called_a_leftover_too(store: ObjectStore) -> None:
    save(store, 1)
    save(store, 2)
    pruner = Pruner(store, keeping(1, 0, 0, leftover_hours=0.0))
    planned = pruner.prune(dry=True)
    assert pruner.prune() == planned == Pruned([1], [])


@pytest.mark.parametrize("dry", [True, False])
def test_pruning_removes_manifests_and_objects(store: ObjectStore, dry: bool) -> None:
    saved = {step: save(store, step, loss).attempt
             for step, loss in [(1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 2.5)]}  # fmt: skip
    pruned = Pruner(store, keeping(1, 1, 4, 1.0)).prune(dry=dry)
    assert pruned == Pruned([1, 3], [])
    left = [1, 2, 3, 4, 5] if dry else [2, 4, 5]
    assert steps(store) == left
    assert attempts(store) == sorted(saved[step] for step in left)
    for name in manifest_names(store):
        CheckpointReader(store, read_manifest(store, name)).verify()


def test_pruning_works_on_an_object_store() -> None:
    store = open_checkpoints(f"memory://retention-{uuid.uuid4().hex}")
    saved = [save(store, step) for step in (1, 2, 3)]
    store.put(f"{OBJECTS}/{OLD}/chunk", [b""])  # begun long ago, written to just now
    assert Pruner(store, NEWEST).prune() == Pruned([1, 2], [])
    assert attempts(store) == sorted([saved[2].attempt, OLD])
    time.sleep(0.01)
    # It has begun and was written to more than no time ago.
    assert Pruner(store, keeping(1, 0, 0, 0.0)).prune() == Pruned([], [OLD])
    assert attempts(store) == [saved[2].attempt]


def test_an_empty_folder_on_a_server_is_nothing_left_behind() -> None:
    """As rclone's has it after an upload that was cut short; no call of S3 removes it."""
    store = open_checkpoints(f"memory://retention-{uuid.uuid4().hex}")
    saved = save(store, 1)
    store._fs.makedirs(store._path(f"{OBJECTS}/{OLD}"))
    assert attempts(store) == sorted([saved.attempt, OLD])
    assert Pruner(store, keeping(1, 0, 0, 0.0)).prune() == Pruned([], [])


class Recorder(ObjectStore):
    """Notes what is read and removed; fails where it is told to."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.calls: list[str] = []
        self.failing = ""

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.failing and self.failing in call:
            raise StoreUnavailable(f"no {call}")

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | bytearray:
        self._note(f"read {name}")
        return super().read(name, start, end)

    def remove(self, name: str) -> None:
        self._note(f"remove {name}")
        super().remove(name)

    def remove_folder(self, folder: str) -> None:
        self._note(f"remove {folder}")
        super().remove_folder(folder)


def test_each_manifest_is_read_once(store: ObjectStore) -> None:
    recorder = Recorder(store.uri)
    pruner = Pruner(recorder, keeping(2, 0, 0, 1.0))
    for step in range(1, 6):
        save(store, step)
        pruner.prune()
    assert steps(store) == [4, 5]
    read = [call for call in recorder.calls if call.startswith("read")]
    assert len(read) == len(set(read)) == 5


def test_a_manifest_goes_before_its_objects(store: ObjectStore) -> None:
    first, second = save(store, 1), save(store, 2)
    recorder = Recorder(store.uri)
    recorder.failing = f"remove {OBJECTS}"
    with pytest.raises(StoreUnavailable):
        Pruner(recorder, NEWEST).prune()
    assert recorder.calls[-2:] == [
        f"remove {ManifestName(1, 0).path}", f"remove {OBJECTS}/{first.attempt}",
    ]  # fmt: skip
    # Half removed it is no checkpoint, and once old enough a leftover.
    assert steps(store) == [2]
    recorder.failing = ""
    assert Pruner(recorder, keeping(1, 0, 0, -1.0)).prune() == Pruned([], [first.attempt])
    assert attempts(store) == [second.attempt]


def test_a_store_that_fails_while_manifests_are_read_loses_nothing(store: ObjectStore) -> None:
    for step in (1, 2, 3):
        save(store, step)
    attempt_of(store, OLD, hours=9)
    recorder = Recorder(store.uri)
    recorder.failing = f"read {ManifestName(2, 0).path}"
    with pytest.raises(StoreUnavailable):
        Pruner(recorder, NEWEST).prune()
    assert steps(store) == [1, 2, 3]
    assert len(attempts(store)) == 4


def test_one_that_cannot_be_proven_is_left_alone_with_its_objects(store: ObjectStore) -> None:
    saved = {step: save(store, step).attempt for step in (1, 2, 3)}
    spoil(store, ManifestName(1, 0))
    for chunk in (Path(store.uri) / OBJECTS / saved[1]).iterdir():
        os.utime(chunk, (1, 1))
    leftover = attempt_of(store, OLD.replace("3-2020", "1-2020"), hours=9)
    other = attempt_of(store, OLD, hours=9)
    assert Pruner(store, keeping(2, 0, 0, -1.0)).prune() == Pruned([], [other.name])
    assert steps(store) == [1, 2, 3]
    # Which attempt of step 1 the manifest named cannot be known.
    assert attempts(store) == sorted([*saved.values(), leftover.name])


def test_one_that_cannot_be_proven_counts_for_nothing(store: ObjectStore) -> None:
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
        save(store, step, loss)
    spoil(store, ManifestName(3, 0))
    assert Pruner(store, NEWEST).prune() == Pruned([1], [])
    assert steps(store) == [2, 3]


@pytest.mark.parametrize("manifest_too", [True, False])
def test_damaged_ones_are_removed_and_do_not_count(store: ObjectStore, manifest_too: bool) -> None:
    """A run went on without step 2 and has come to step 3 again."""
    saved = {step: save(store, step).attempt for step in (1, 2, 3)}
    damaged = frozenset({ManifestName(2, 0)})
    if manifest_too:
        spoil(store, ManifestName(2, 0))
    pruned = Pruner(store, keeping(2, 0, 0, 1.0)).prune(damaged)
    assert pruned == Pruned([2], [])
    assert steps(store) == [1, 3]
    # Without a manifest to name them its objects stay until they are old.
    left = [saved[1], saved[3], *([saved[2]] if manifest_too else [])]
    assert attempts(store) == sorted(left)
    Pruner(store, keeping(2, 0, 0, -1.0)).prune()
    assert attempts(store) == sorted([saved[1], saved[3]])


def test_superseded_generations_are_removed(store: ObjectStore) -> None:
    first = save(store, 5)
    names = {ManifestName(5, 0)}
    second = save(store, 5, damaged=frozenset(names))
    assert manifest_names(store) == [ManifestName(5, 0), ManifestName(5, 1)]
    assert Pruner(store, keeping(9, 0, 5, 1.0)).prune() == Pruned([5], [])
    assert manifest_names(store) == [ManifestName(5, 1)]
    assert attempts(store) == [second.attempt] != [first.attempt]


def test_a_generation_that_cannot_be_proven_supersedes_nothing(store: ObjectStore) -> None:
    first = save(store, 5)
    save(store, 5, damaged=frozenset({ManifestName(5, 0)}))
    spoil(store, ManifestName(5, 1))
    assert Pruner(store, NEWEST).prune() == Pruned([], [])
    assert first.attempt in attempts(store)
    assert len(attempts(store)) == 2


@pytest.mark.parametrize(
    ("begun_hours_ago", "written_hours_ago", "leftover"),
    [(9.0, 5.0, True), (9.0, 0.5, False), (0.5, 0.1, False), (0.5, 5.0, False)],
)
@pytest.mark.parametrize("dry", [True, False])
def test_leftovers_are_old_from_begin_to_end(
    store: ObjectStore, begun_hours_ago: float, written_hours_ago: float, leftover: bool, dry: bool
) -> None:
    kept = save(store, 7)
    folder = attempt_of(store, begun(begun_hours_ago), hours=written_hours_ago)
    pruned = Pruner(store, NEWEST).prune(dry=dry)
    assert pruned == Pruned([], [folder.name] if leftover else [])
    assert folder.exists() == (dry or not leftover)
    assert kept.attempt in attempts(store)
    assert list_steps(str(Path(store.uri).parent)) == [7]


def test_an_attempt_with_a_manifest_is_no_leftover_however_old(store: ObjectStore) -> None:
    saved = save(store, 7)
    for path in (Path(store.uri) / OBJECTS / saved.attempt).iterdir():
        os.utime(path, (1, 1))
    assert Pruner(store, keeping(1, 0, 0, -9.0)).prune() == Pruned([], [])
    assert attempts(store) == [saved.attempt]


def test_nothing_more_is_removed_when_it_is_not_to_go_on(store: ObjectStore) -> None:
    for step in (1, 2, 3):
        save(store, step)
    attempt_of(store, OLD, hours=9)
    for removals, left in ((0, [1, 2, 3]), (1, [2, 3]), (1, [3])):
        chances = iter([True] * removals + [False])
        pruner = Pruner(store, NEWEST)
        with pytest.raises(CheckpointError, match="broken off"):
            pruner.prune(go_on=lambda: next(chances))  # noqa: B023
        assert steps(store) == left
    with pytest.raises(CheckpointError, match="broken off"):
        Pruner(store, NEWEST).prune(go_on=lambda: False)
    assert OLD in attempts(store)
    assert Pruner(store, NEWEST).prune() == Pruned([], [OLD])


def test_an_empty_attempt_is_a_leftover(store: ObjectStore) -> None:
    (Path(store.uri) / OBJECTS / OLD).mkdir(parents=True)
    assert Pruner(store, NEWEST).prune() == Pruned([], [OLD])
    assert attempts(store) == []


def test_what_has_another_name_is_not_touched(store: ObjectStore) -> None:
    save(store, 7)
    names = ["notes", OLD + "-copy", "x" + OLD, OLD.upper(), OLD[:-1]]
    for name in names:
        folder = Path(store.uri) / OBJECTS / name
        folder.mkdir()
        (folder / "x").write_bytes(b"")
        os.utime(folder / "x", (1, 1))
    (Path(store.uri) / "manifests" / "README").write_text("mine")
    assert Pruner(store, NEWEST).prune() == Pruned([], [])
    assert set(names) < set(attempts(store))


def test_one_that_is_published_meanwhile_is_not_touched(store: ObjectStore) -> None:
    """Attempts are listed before manifests: what appears in between has a manifest."""

    class Publisher(ObjectStore):
        def names(self, folder: str) -> list[str]:
            found = super().names(folder)
            if folder == OBJECTS and not manifest_names(store):
                save(store, 7)
            return found

    assert Pruner(Publisher(store.uri), keeping(1, 0, 0, -1.0)).prune() == Pruned([], [])
    assert steps(store) == [7]
    assert len(attempts(store)) == 1

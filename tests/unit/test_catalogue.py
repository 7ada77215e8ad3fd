"""Which checkpoint a command takes: the best of those that can be proven, or the one asked for."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint.catalogue import (
    LISTINGS,
    best_loss,
    current_names,
    list_steps,
    loss_of,
    manifest_names,
    name_of_choice,
    name_of_step,
    open_checkpoints,
    read_manifest,
)
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.manifest import (
    MAX_MANIFEST_BYTES,
    CheckpointDamaged,
    CheckpointError,
    ManifestName,
    TensorInfo,
)
from dist_embed.checkpoint.write import Description
from dist_embed.cli import checkpoint as checkpoint_commands
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import write_checkpoint


def save(run: Path, step: int, loss: Any = None, **more: Any) -> ManifestName:
    store = open_checkpoints(str(run))
    scalars = {} if loss is None else {"validation_loss": loss}
    description = Description(
        step, "", {"model.x": TensorInfo(dtype="F32", shape=[2])}, {}, json.dumps(scalars)
    )
    write_checkpoint(store, description, [Rows("model.x", 0, torch.zeros(2))], **more)
    return [name for name in manifest_names(store) if name.step == step][-1]


def path_of(run: Path, name: ManifestName) -> Path:
    return run / "checkpoints" / name.path


def tear(run: Path, name: ManifestName) -> None:
    path = path_of(run, name)
    path.write_bytes(path.read_bytes()[:-5])


def chosen(run: Path, step: int | None = None) -> tuple[ManifestName, list[str]]:
    said: list[str] = []
    return name_of_choice(str(run), step, said.append), said


def test_the_lowest_loss_counts_and_the_earlier_of_equal_ones(tmp_path: Path) -> None:
    names = {step: save(tmp_path, step, loss)
             for step, loss in [(1, 3.0), (2, 1.5), (3, 1.5), (4, 2), (5, None)]}  # fmt: skip
    assert chosen(tmp_path) == (names[2], [])
    assert chosen(tmp_path, 4) == (names[4], [])
    assert list_steps(str(tmp_path)) == [1, 2, 3, 4, 5]


def test_without_any_loss_the_newest_counts(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        save(tmp_path, step)
    assert chosen(tmp_path) == (ManifestName(20, 0), [])


def test_where_there_is_none_it_is_said_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no complete checkpoint$"):
        chosen(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no complete checkpoint of step 3$"):
        chosen(tmp_path, 3)
    for step in (1, 2):
        save(tmp_path, step)
    with pytest.raises(CheckpointError, match=r"of step 3; there are 1, 2$"):
        chosen(tmp_path, 3)


@pytest.mark.parametrize("torn", [100, 200, 300])
def test_a_torn_manifest_is_named_and_another_taken(tmp_path: Path, torn: int) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step, 5.0 - step / 100)
    tear(tmp_path, ManifestName(torn, 0))
    name, said = chosen(tmp_path)
    assert name.step == (200 if torn == 300 else 300)
    assert len(said) == 1
    assert said[0].startswith(f"the checkpoint of step {torn} is damaged and not considered: ")
    assert "wrong SHA-256" in said[0]
    # What is asked for is not replaced.
    assert chosen(tmp_path, torn) == (ManifestName(torn, 0), [])
    with pytest.raises(CheckpointDamaged):
        read_manifest(open_checkpoints(str(tmp_path)), ManifestName(torn, 0))


def test_nobody_listens_it_is_said_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    tear(tmp_path, save(tmp_path, 2))
    assert name_of_choice(str(tmp_path), None).step == 1
    assert "step 2 is damaged" in capsys.readouterr().err


def test_where_all_are_torn_each_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    for step in (1, 2):
        tear(tmp_path, save(tmp_path, step))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        name_of_choice(str(tmp_path), None, said.append)
    assert len(said) == 2


def test_what_is_inspected_without_a_step_is_the_newest_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_commands, "_check_run", lambda run: None)
    run = argparse.Namespace(run=str(tmp_path), step=None)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint_commands._inspect(run)
    for step in (1, 2, 3):
        save(tmp_path, step, loss=float(step))
    tear(tmp_path, ManifestName(3, 0))
    checkpoint_commands._inspect(run)
    said = capsys.readouterr()
    assert "step         2, saved" in said.out
    assert "step 3 is damaged" in said.err
    with pytest.raises(CheckpointDamaged):
        checkpoint_commands._inspect(argparse.Namespace(run=str(tmp_path), step=3))


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Lets something happen after each listing of the manifests, given its number."""

    def install(act: Callable[[int], None]) -> None:
        original, count = ObjectStore.names, 0

        def names(store: ObjectStore, folder: str) -> list[str]:
            nonlocal count
            found = original(store, folder)
            count += 1
            act(count)
            return found

        monkeypatch.setattr(ObjectStore, "names", names)

    return install


Beside = Callable[[Callable[[int], None]], None]


def test_what_is_pruned_between_listing_and_reading_is_no_damage(
    tmp_path: Path, beside: Beside
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    beside(lambda listing: path_of(tmp_path, ManifestName(1, 0)).unlink(missing_ok=True))
    assert chosen(tmp_path) == (ManifestName(2, 0), [])


def replaced_at(run: Path, listings: int) -> tuple[Callable[[int], None], list[int]]:
    """A training that, after each of the first listings, has saved a step and pruned all others.

    Also the numbers of the listings that there were.
    """
    folder = run / "checkpoints" / "manifests"
    sound = {}
    for step in range(1, listings + 2):
        path = path_of(run, save(run, step))
        sound[path.name] = path.read_bytes()
        path.unlink()
    steps = iter(sound.items())
    seen: list[int] = []

    def act(listing: int) -> None:
        seen.append(listing)
        if listing <= listings:
            for path in folder.iterdir():
                path.unlink()
            name, data = next(steps)
            (folder / name).write_bytes(data)

    act(0)
    seen.clear()
    return act, seen


def test_where_all_are_pruned_meanwhile_they_are_listed_again(
    tmp_path: Path, beside: Beside
) -> None:
    act, seen = replaced_at(tmp_path, 2)
    beside(act)
    assert chosen(tmp_path) == (ManifestName(3, 0), [])
    assert seen == [1, 2, 3]


def test_they_are_not_listed_again_for_ever(tmp_path: Path, beside: Beside) -> None:
    act, seen = replaced_at(tmp_path, 99)
    beside(act)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        chosen(tmp_path)
    assert len(seen) == LISTINGS + 1


def test_of_a_step_the_newest_generation_counts(tmp_path: Path) -> None:
    damaged: set[ManifestName] = set()
    for _ in range(11):
        damaged.add(save(tmp_path, 7, loss=float(len(damaged)), damaged=damaged))
    save(tmp_path, 8)
    newest = ManifestName(7, 10)  # which comes before 7-2 by its letters
    assert newest in damaged
    store = open_checkpoints(str(tmp_path))
    assert manifest_names(store) == [ManifestName(7, g) for g in range(11)] + [ManifestName(8, 0)]
    assert current_names(store) == [newest, ManifestName(8, 0)]
    assert name_of_step(str(tmp_path), 7) == newest
    assert chosen(tmp_path) == (newest, [])
    # One that cannot be proven supersedes nothing, unless it is asked for.
    tear(tmp_path, newest)
    name, said = chosen(tmp_path)
    assert (name, len(said)) == (ManifestName(7, 9), 1)
    assert chosen(tmp_path, 7) == (newest, [])


def test_a_manifest_is_that_of_its_name(tmp_path: Path) -> None:
    path = path_of(tmp_path, save(tmp_path, 1))
    path.rename(path_of(tmp_path, ManifestName(2, 0)))
    store = open_checkpoints(str(tmp_path))
    with pytest.raises(CheckpointDamaged, match="holds the manifest of step 1"):
        read_manifest(store, ManifestName(2, 0))
    with pytest.raises(CheckpointDamaged, match="does not exist"):
        read_manifest(store, ManifestName(1, 0))
    for size, message in ((1, "larger than any manifest"), (0, "wrong SHA-256")):
        path_of(tmp_path, ManifestName(2, 0)).write_bytes(b" " * (MAX_MANIFEST_BYTES + size))
        with pytest.raises(CheckpointDamaged, match=message):
            read_manifest(store, ManifestName(2, 0))


@pytest.mark.parametrize(
    ("saved", "loss"), [(1.5, 1.5), (2, 2.0), ("1.5", None), (None, None), (10**400, None)]
)
def test_a_loss_is_a_number(tmp_path: Path, saved: Any, loss: float | None) -> None:
    name = save(tmp_path, 1, 1.0)
    manifest = read_manifest(open_checkpoints(str(tmp_path)), name)
    assert loss_of(manifest.model_copy(update={"scalars": {"validation_loss": saved}})) == loss
    assert loss_of(manifest.model_copy(update={"scalars": {}})) is None


def test_the_best_so_far_is_that_of_sound_checkpoints(tmp_path: Path) -> None:
    store = open_checkpoints(str(tmp_path))
    assert best_loss(store) == math.inf
    save(tmp_path, 1)
    assert best_loss(store) == math.inf
    for step, loss in ((2, 2.5), (3, 1.25), (4, 3.0)):
        save(tmp_path, step, loss)
    assert best_loss(store) == 1.25
    # The data of that one are damaged.
    assert best_loss(store, but=frozenset({ManifestName(3, 0)})) == 2.5
    tear(tmp_path, ManifestName(3, 0))
    assert best_loss(store) == 2.5

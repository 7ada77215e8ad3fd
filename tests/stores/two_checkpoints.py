"""A run with two checkpoints whose content is known, to be damaged."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dist_embed.checkpoint.catalogue import open_checkpoints, read_manifest
from dist_embed.checkpoint.load import load_checkpoint, load_newest
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointDamaged,
    Manifest,
    ManifestName,
)
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.state import LiveTensor, TrainingState, own_rows
from dist_embed.checkpoint.write import Description
from dist_embed.embedding.row_order import RowOrder
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import write_checkpoint
from tests.stores.s3_server import FORGETS_SECONDS

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]
OLDER, NEWER = ManifestName(5, 0), ManifestName(10, 0)


def state_of(step: int) -> TrainingState:
    """The state at a step: other values at each, and 0 for one that nothing was loaded into."""
    draw = torch.Generator().manual_seed(step)
    tensors = {
        "table.words.weight": LiveTensor(torch.randn(300, 8, generator=draw), 0, 300, False),
        "table.words.momentum1": LiveTensor(torch.rand(300, generator=draw), 0, 300, False),
        "model.out.weight": LiveTensor.whole(torch.randn(20, 9, generator=draw)),
        "model.scale": LiveTensor.whole(torch.randn((), generator=draw)),
    }
    scalars = {"position": {"epoch": step}, "validation_loss": step / 2}
    return TrainingState(ONE, step, tensors, {"words": RowOrder(300).multiplier}, scalars, "f" * 64)


def save(store: ObjectStore, state: TrainingState, chunk_bytes: int) -> Manifest:
    description = Description(
        state.step, state.fingerprint, {name: t.info for name, t in state.tensors.items()},
        state.row_multipliers, json.dumps(state.scalars),
    )  # fmt: skip
    return write_checkpoint(store, description, own_rows(state), chunk_bytes=chunk_bytes)


def assert_holds(state: TrainingState, step: int) -> None:
    """That a state is bit for bit `state_of` the step."""
    expected = state_of(step)
    assert (state.step, state.scalars) == (step, expected.scalars)
    for name, tensor in expected.tensors.items():
        assert torch.equal(state.tensors[name].data, tensor.data), name


@dataclass
class Run:
    """A run with a checkpoint of step 5 and one of step 10, which is to be damaged."""

    store: ObjectStore
    folder: Path
    older: Manifest
    newer: Manifest

    def __post_init__(self) -> None:
        self.files = self._files(NEWER, self.newer)
        self.older_files = self._files(OLDER, self.older)

    def _files(self, name: ManifestName, manifest: Manifest) -> dict[str, bytes]:
        paths = sorted((self.folder / OBJECTS / manifest.attempt).iterdir())
        paths.append(self.folder / name.path)
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def named(self, kind: str) -> list[str]:
        return [name for name in self.files if name.rsplit("/", 1)[1].startswith(kind)]

    def put(self, changes: dict[str, bytes | None]) -> None:
        """Put other bytes, or nothing, in place of objects."""
        for name, data in changes.items():
            if data is None:
                (self.folder / name).unlink()
            else:
                (self.folder / name).write_bytes(data)
        self._until_seen()

    def mend(self, changes: dict[str, bytes | None]) -> None:
        """Put back what was there; to be seen by the next `put`, or `check_sound`."""
        for name in changes:
            (self.folder / name).write_bytes(self.files[name])

    def _until_seen(self) -> None:
        if not self.store.is_local:
            time.sleep(5 * FORGETS_SECONDS)  # until the server looks again

    def check_sound(self) -> None:
        """What nobody has touched loads."""
        self._until_seen()
        state = state_of(0)
        assert load_newest(self.store, state, pytest.fail).step == 10
        assert_holds(state, 10)
        CheckpointReader(self.store, read_manifest(self.store, NEWER)).verify()

    def check_refused(self) -> None:
        """The newer one, of which something was put, is neither loaded nor found sound."""
        state = state_of(0)
        for in_place in (False, True):
            with pytest.raises(CheckpointDamaged):
                load_checkpoint(self.store, NEWER, state, in_place=in_place)
            assert_holds(state, 0)
        with pytest.raises(CheckpointDamaged):
            CheckpointReader(self.store, read_manifest(self.store, NEWER)).verify()

    def check_passed_over(self) -> None:
        """The older one is taken, and it is said why."""
        state, said = state_of(0), list[str]()
        loaded = load_newest(self.store, state, said.append)
        assert (loaded.step, loaded.damaged) == (5, frozenset({NEWER}))
        assert len(said) == 1
        assert said[0].startswith("the checkpoint of step 10 is damaged and not used: ")
        assert_holds(state, 5)


def run_at(uri: str, folder: Path, chunk_bytes: int) -> Run:
    store = open_checkpoints(uri, retry_seconds=10.0)
    older, newer = (save(store, state_of(step), chunk_bytes) for step in (5, 10))
    return Run(store, folder / "checkpoints", older, newer)

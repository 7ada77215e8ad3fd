"""Loading without a copy of the tables: everything is read twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_embed.checkpoint.load import load_checkpoint, load_newest
from dist_embed.checkpoint.manifest import CheckpointDamaged, CheckpointError
from dist_embed.checkpoint.read import CheckpointReader
from tests.stores.two_checkpoints import NEWER, OLDER, Run, assert_holds, run_at, state_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_at(str(tmp_path), tmp_path, 1000)


def test_it_loads_what_was_saved_into_the_same_memory(run: Run) -> None:
    state = state_of(0)
    places = {name: tensor.data.data_ptr() for name, tensor in state.tensors.items()}
    once = load_checkpoint(run.store, NEWER, state_of(0))
    twice = load_checkpoint(run.store, NEWER, state, in_place=True)
    assert_holds(state, 10)
    assert places == {name: tensor.data.data_ptr() for name, tensor in state.tensors.items()}
    # The indexes are read once.
    assert once < twice < 2 * once


@pytest.fixture
def changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The newer one's last chunk is damaged once everything has been proven."""
    prove = CheckpointReader.prove

    def prove_and_damage(reader: CheckpointReader, wanted: list[object]) -> None:
        prove(reader, wanted)  # type: ignore[arg-type]
        if reader.manifest.step == 10:
            name = run.named("chunk")[-1]
            run.put({name: run.files[name][:-1] + bytes([run.files[name][-1] ^ 1])})

    monkeypatch.setattr(CheckpointReader, "prove", prove_and_damage)
    return run


def test_what_changes_between_the_readings_is_found_and_the_older_one_taken(changed: Run) -> None:
    state, said = state_of(0), list[str]()
    loaded = load_newest(changed.store, state, said.append, in_place=True)
    assert (loaded.step, loaded.damaged) == (5, frozenset({NEWER}))
    assert len(said) == 1
    assert_holds(state, 5)


def test_without_an_older_one_the_run_ends(changed: Run) -> None:
    (changed.folder / OLDER.path).unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        load_newest(changed.store, state_of(0), lambda line: None, in_place=True)
    with pytest.raises(CheckpointDamaged):
        load_checkpoint(changed.store, NEWER, state_of(0), in_place=True)

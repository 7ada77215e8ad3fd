"""Which checkpoint inference loads beside a training that prunes, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_embed.checkpoint import load as load_module
from dist_embed.checkpoint.catalogue import LISTINGS, manifest_names, open_checkpoints
from dist_embed.checkpoint.load import load_checkpoint, load_chosen, load_newest
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointDamaged,
    CheckpointError,
    ManifestName,
)
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.state import Fixed, LiveTensor, TrainingState, own_rows
from dist_embed.checkpoint.write import Description
from dist_embed.parallel.group import Group
from tests.checkpoints import keeping, write_checkpoint

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]


def fixed(value: str) -> Fixed:
    return Fixed(value, lambda there: f"says {there}, not {value}")


def state_of(step: int, **more: torch.Tensor) -> TrainingState:
    tensors = {
        "table.t.weight": LiveTensor(torch.full((9, 2), float(step)), 0, 9, replicated=False),
        "model.x": LiveTensor.whole(torch.full((3,), step + 0.5)),
        **{name: LiveTensor.whole(data) for name, data in more.items()},
    }
    must_equal = {"source vocabulary": fixed("abc")}
    scalars = {"validation_loss": 9.0 - step}
    return TrainingState(ONE, step, tensors, {"t": 7}, scalars, must_equal=must_equal)


def save(run: Path, step: int) -> None:
    state = state_of(step, **{"optimizer.x": torch.ones(3)})
    infos = {name: tensor.info for name, tensor in state.tensors.items()}
    description = Description(step, "", infos, {"t": 7}, json.dumps(state.scalars))
    write_checkpoint(open_checkpoints(str(run)), description, own_rows(state), chunk_bytes=40)


def assert_holds(state: TrainingState, step: int) -> None:
    assert state.step == step
    for name, tensor in state_of(step).tensors.items():
        assert torch.equal(state.tensors[name].data, tensor.data)


@pytest.fixture
def before_loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Lets something happen between the choice and the load, each time."""

    def install(act: Callable[[], None]) -> None:
        def patched(*args: object, **more: object) -> int:
            act()
            return load_checkpoint(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(load_module, "load_checkpoint", patched)

    return install


Before = Callable[[Callable[[], None]], None]


def save_and_prune(run: Path) -> None:
    """As a training does, whose newer checkpoint is the best."""
    store = open_checkpoints(str(run))
    save(run, manifest_names(store)[-1].step + 1)
    Pruner(store, keeping(1, 0, 0, 1.0)).prune()


@pytest.mark.parametrize("in_place", [True, False])
def test_one_that_is_pruned_before_it_is_loaded_is_replaced(
    tmp_path: Path, before_loading: Before, in_place: bool
) -> None:
    save(tmp_path, 1)
    chances = iter([True, True, False])
    before_loading(lambda: save_and_prune(tmp_path) if next(chances) else None)
    state, said = state_of(0), list[str]()
    assert load_chosen(str(tmp_path), None, state, said.append, in_place=in_place) == 3
    assert_holds(state, 3)
    assert said == []


def test_that_has_an_end(tmp_path: Path, before_loading: Before) -> None:
    save(tmp_path, 1)
    before_loading(lambda: save_and_prune(tmp_path))
    state = state_of(0)
    with pytest.raises(CheckpointDamaged, match="does not exist"):
        load_chosen(str(tmp_path), None, state, pytest.fail)
    assert_holds(state, 0)
    assert manifest_names(open_checkpoints(str(tmp_path)))[-1].step == 1 + LISTINGS


def test_what_was_asked_for_is_not_replaced(tmp_path: Path, before_loading: Before) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    state = state_of(0)
    assert load_chosen(str(tmp_path), 1, state, pytest.fail) == 1
    assert_holds(state, 1)
    before_loading(lambda: save_and_prune(tmp_path))
    with pytest.raises(CheckpointDamaged, match="does not exist"):
        load_chosen(str(tmp_path), 1, state_of(0), pytest.fail)


def test_one_that_is_damaged_is_not_replaced(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    for chunk in (tmp_path / "checkpoints" / OBJECTS).glob("step-000000002*/chunk*"):
        chunk.write_bytes(b"x")
    with pytest.raises(CheckpointDamaged, match="step-000000002"):
        load_chosen(str(tmp_path), None, state_of(0), pytest.fail)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    store, name = open_checkpoints(str(tmp_path)), ManifestName(1, 0)

    def refused(state: TrainingState, *, partial: bool = False) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(store, name, state, partial=partial)
        assert not isinstance(caught.value, CheckpointDamaged)
        assert state.step == 5
        return str(caught.value)

    optimizer = {"optimizer.x": torch.zeros(3)}
    assert "holds optimizer.x, which the model or tables here have not" in refused(state_of(5))
    more = state_of(5, **optimizer, **{"model.y": torch.zeros(1)})
    assert "has no model.y, which the model or tables here need" in refused(more, partial=True)
    wide = refused(state_of(5, **{"optimizer.x": torch.zeros(4)}))
    assert "holds optimizer.x as F32 3; asked for is F32 4" in wide
    assert "embedding.weights" not in wide
    half = refused(state_of(5, **{"optimizer.x": torch.zeros(3).half()}))
    assert "embedding.weights" in half
    other = state_of(5, **optimizer)
    other.must_equal = {"source vocabulary": fixed("abd")}
    assert "says abc, not abd" in refused(other)
    order = state_of(5, **optimizer)
    order.row_multipliers = {"t": 5}
    assert "another order of rows: {'t': 7}; this version uses {'t': 5}" in refused(order)
    # Older ones do not say which vocabularies they were trained with.
    silent = state_of(5, **optimizer)
    silent.must_equal = {"target vocabulary": fixed("x")}
    assert load_newest(store, silent, pytest.fail).step == 1
    assert silent.scalars == {
        "validation_loss": 8.0, "source vocabulary": "abc", "target vocabulary": "x",
    }  # fmt: skip


def test_where_there_is_nothing_nothing_is_loaded(tmp_path: Path) -> None:
    state = state_of(5)
    loaded = load_newest(open_checkpoints(str(tmp_path)), state, pytest.fail)
    assert (loaded.step, loaded.damaged, loaded.bytes_read) == (0, frozenset(), 0)
    assert_holds(state, 5)


def test_the_bytes_that_were_read_are_told(tmp_path: Path) -> None:
    save(tmp_path, 1)
    state = state_of(0, **{"optimizer.x": torch.zeros(3)})
    loaded = load_newest(open_checkpoints(str(tmp_path)), state, pytest.fail)
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints" / OBJECTS).rglob("*.*"))
    assert loaded.bytes_read == size


def test_of_a_step_the_newest_generation_is_loaded(tmp_path: Path) -> None:
    store = open_checkpoints(str(tmp_path))
    for _ in range(11):
        state = state_of(1)
        state.scalars["position"] = len(manifest_names(store))
        infos = {name: tensor.info for name, tensor in state.tensors.items()}
        description = Description(1, "", infos, {"t": 7}, json.dumps(state.scalars))
        damaged = frozenset(manifest_names(store))
        write_checkpoint(store, description, own_rows(state), damaged=damaged)
    state = state_of(0)
    load_newest(store, state, pytest.fail)
    assert state.scalars["position"] == 10

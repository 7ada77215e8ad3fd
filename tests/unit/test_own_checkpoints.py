"""`Checkpoints` of a loop of one's own, given what cannot be, and used without a ``with`` block."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from dist_embed.checkpoint import saver
from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.checkpoint.of_tables import Checkpoints
from dist_embed.checkpoint.settings import Saving
from dist_embed.checkpoint.state import HostBuffers
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group


@pytest.fixture(scope="module")
def tables(alone: Group) -> ShardedTables:
    return ShardedTables({"w": Table(9, 4)}, alone, optimizer="sgd")


def test_a_place_that_cannot_hold_checkpoints_is_refused_at_once(
    tables: ShardedTables, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    calls: list[Callable[[Checkpoints], Any]] = [lambda c: c.load(), lambda c: c.save(1)]
    for call in calls:
        with pytest.raises(UserError, match=rf"uri: .*: {file} is no folder"):
            call(Checkpoints(file, tables))
        with pytest.raises(UserError, match=r"uri: .*/proc/xx/checkpoints: no folder can be made"):
            call(Checkpoints("/proc/xx", tables))
    assert file.read_text() == "text"


def test_a_folder_without_rights_is_refused_where_it_holds_no_checkpoint(
    tables: ShardedTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path / "full", tables).save(1)
    monkeypatch.setattr("os.access", lambda *args: False)
    assert Checkpoints(tmp_path / "full", tables).load() == 1
    with pytest.raises(UserError, match="cannot be written to, and holds none"):
        Checkpoints(tmp_path / "empty", tables).load()


def test_without_a_block_a_save_is_whole_when_it_returns(
    tables: ShardedTables, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, tables)
    assert checkpoints.load() == 0
    for step in (1, 2):
        checkpoints.save(step)
        assert list_steps(str(tmp_path))[-1] == step


def test_a_step_is_saved_once(tables: ShardedTables, tmp_path: Path) -> None:
    said = f"step: 2 has a checkpoint in {tmp_path}/checkpoints already; a step is saved once"
    with Checkpoints(tmp_path, tables) as checkpoints:
        checkpoints.save(1)
        checkpoints.save(2)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(2)
        assert str(caught.value) == said
    loaded = Checkpoints(tmp_path, tables)
    assert loaded.load() == 2
    for again in (loaded, Checkpoints(tmp_path, tables)):
        with pytest.raises(CheckpointError) as caught:
            again.save(2)
        assert str(caught.value) == said
    loaded.save(3)
    assert list_steps(str(tmp_path)) == [1, 2, 3]


def test_a_step_whose_save_failed_is_saved_again(
    tables: ShardedTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path, tables).save(1)
    checkpoints = Checkpoints(tmp_path, tables)
    with monkeypatch.context() as patch:
        patch.setattr(saver, "publish", Mock(side_effect=RuntimeError("broken")))
        with pytest.raises(CheckpointError, match="broken"):
            checkpoints.save(2)
    with pytest.raises(CheckpointError, match="1 has a checkpoint in"):
        checkpoints.save(1)  # nothing has been saved by this one, which has loaded nothing
    checkpoints.save(2)
    assert list_steps(str(tmp_path)) == [1, 2]


def test_a_second_training_in_one_place_is_refused_before_pruning_takes_its_steps(
    tables: ShardedTables, tmp_path: Path
) -> None:
    first = Checkpoints(tmp_path, tables)
    first.save(2)
    said = (
        f"step: 1 is not allowed: {tmp_path}/checkpoints has a checkpoint of step 2; load it and "
        "go on from there, or give another place"
    )
    loaded = Checkpoints(tmp_path, tables)
    loaded.load()
    for checkpoints in (first, loaded, Checkpoints(tmp_path, tables)):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(1)
        assert str(caught.value) == said
    assert list_steps(str(tmp_path)) == [2]


@pytest.mark.parametrize(
    ("saving", "of_save", "of_load"), [("behind", 1, 1), ("waiting", 0, 1), ("in_place", 0, 0)]
)
def test_saving_says_what_takes_a_copy_of_the_tables(
    tables: ShardedTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: Saving,
    of_save: int, of_load: int,
) -> None:  # fmt: skip
    copies: list[list[Rows]] = []
    original = HostBuffers.unfilled

    def counted(buffers: HostBuffers, rows: list[Rows]) -> list[Rows]:
        copies.append(rows)
        return original(buffers, rows)

    monkeypatch.setattr(HostBuffers, "unfilled", counted)
    weight = tables.weight("w").fill_(3)
    checkpoints = Checkpoints(tmp_path, tables, saving=saving)
    checkpoints.save(1)
    assert len(copies) == of_save
    weight.zero_()
    assert checkpoints.load() == 1
    assert weight.eq(3).all()
    assert len(copies) == of_save + of_load


@pytest.mark.parametrize(
    ("step", "said"),
    [(0, "step: 0 is not allowed: a whole number, at least 1"), (-3, "step: -3 is"),
     ("1", "step: '1' is not allowed"), (1.0, r"step: 1\.0 is not allowed: a whole"),
     (True, "step: True is no"), (None, "step: None is no")],
)  # fmt: skip
def test_steps_are_counted_from_1(
    tables: ShardedTables, tmp_path: Path, step: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Checkpoints(tmp_path, tables).save(step)
    assert not list(tmp_path.iterdir())


def test_values_that_json_cannot_hold_are_named_and_nothing_is_written(
    tables: ShardedTables, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, tables)
    checkpoints.values = {"epoch": 1, "x": torch.ones(1)}
    with pytest.raises(UserError, match=r"values: 'x': tensor\(.*JSON cannot hold it.*`dense`"):
        checkpoints.save(1)
    checkpoints.values = {"loss": float("nan")}
    with pytest.raises(UserError, match="values: 'loss': nan is not allowed"):
        checkpoints.save(1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "said"),
    [({1: "a"}, "a key of values: 1 is not allowed: JSON makes text of it"),
     ({"a": ({"b": [{2.5: 0}]},)},
      "a key of values['a'][0]['b'][0]: 2.5 is not allowed: JSON makes text of it"),
     ({"a": {None: 1}}, "a key of values['a']: None is not allowed: JSON makes text of it")],
)  # fmt: skip
def test_values_that_json_would_change_are_named(
    tables: ShardedTables, tmp_path: Path, values: Any, said: str
) -> None:
    checkpoints = Checkpoints(tmp_path, tables)
    checkpoints.values = values
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        checkpoints.save(1)
    assert not list(tmp_path.iterdir())


def test_values_come_back_as_they_were(tables: ShardedTables, tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None, True, {"b": "\u4e00"}], "c": {}, "place": [3, 4]}
    checkpoints = Checkpoints(tmp_path, tables)
    checkpoints.values = values | {"place": (3, 4)}
    checkpoints.save(1)
    loaded = Checkpoints(tmp_path, tables)
    loaded.load()
    assert loaded.values == values


def test_a_relative_folder_is_that_of_the_beginning(
    tables: ShardedTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("words", tables)
    monkeypatch.chdir("elsewhere")
    checkpoints.save(1)
    assert list_steps(str(tmp_path / "words")) == [1]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("how", "said"),
    [({"keep_last": 0}, "keep_last: 0 is not allowed: a whole number, at least 1"),
     ({"saving": "later"}, "saving: 'later' is not allowed: one of behind, waiting, in_place"),
     ({"timeout_seconds": -1}, "timeout_seconds: -1 is not allowed: a number above 0"),
     ({"timeout_seconds": float("inf")}, "timeout_seconds: inf is not allowed: a number above 0"),
     ({"dense": nn.Linear(2, 2)}, r"dense: a Linear is not allowed.*dense_tensors\(module"),
     ({"dense": {"x": 3}}, "dense: 'x': 3 is no tensor"),
     ({"dense": {"table.w": torch.ones(1)}}, "dense: 'table.w' is not allowed"),
     ({"dense": {1: torch.ones(1)}}, "dense: 1 is not allowed: names are text"),
     ({"uri": ""}, "uri: '' is not allowed: a path"), ({"uri": None}, "uri: None is not allowed"),
     ({"uri": "a\0b"}, "uri: .* is not allowed: no path holds such characters"),
     ({"report": "x"}, "report: 'x' is not allowed: a function"),
     ({"tables": {"w": 1}}, r"tables: \{'w': 1\} is not allowed: they are a ShardedTables")],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused_by_name(
    tables: ShardedTables, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Checkpoints(**({"uri": tmp_path, "tables": tables} | how))

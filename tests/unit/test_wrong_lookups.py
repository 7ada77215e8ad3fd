"""What `ShardedTables` are given that cannot be: one error, and the tables stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.model.output_layer import ExactSoftmax
from dist_embed.parallel.group import Group


@pytest.fixture
def tables(alone: Group) -> ShardedTables:
    named = {"w": Table(9, 4), "x": Table(7, 8, ("a", "b"), learning_rate=0.5)}
    return ShardedTables(named, alone, optimizer="sgd")


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("how", "expected"),
    [({"memory": "ram"}, "memory: 'ram' is not allowed: one of auto, device, uvm, uvm_caching"),
     ({"weights": "int8"}, "weights: 'int8' is not allowed: one of fp32, fp16"),
     ({"exchange": "int8"}, "exchange: 'int8' is not allowed: one of fp32, fp16, bf16"),
     ({"optimizer": None}, "optimizer: None is not allowed: one of rowwise_adagrad, adagrad, sgd, "
                           "adam"),
     ({"learning_rate": -1}, "learning_rate: -1 is not allowed: a number, at least 0"),
     ({"learning_rate": True}, "learning_rate: True is not allowed: a number, at least 0"),
     ({"eps": "1e-8"}, "eps: '1e-8' is not allowed: a number, at least 0")],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(
    alone: Group, how: dict[str, Any], expected: str
) -> None:
    assert said(lambda: ShardedTables({"w": Table(9, 4)}, alone, **how)) == expected


def test_tables_that_memory_cannot_hold_are_refused_before_they_are_made(alone: Group) -> None:
    huge = {"w": Table(2**31 - 1, 512)}
    assert said(lambda: ShardedTables(huge, alone, optimizer="sgd")).startswith(
        "tables: their rows and the optimizer's state need 4096.0 GiB of memory here"
    )


def test_names_that_no_table_has_are_refused(tables: ShardedTables) -> None:
    expected = "table 'zz': there is none of that name; there are w, x"
    calls: list[Callable[[], Any]] = [
        lambda: tables.freeze(frozenset({"zz"})),
        lambda: tables.freeze("zz"),
        lambda: tables.set_learning_rate(0.1, {"zz": 1.0}),
        lambda: tables.weight("zz"),
        lambda: tables.optimizer_state("zz"),
        lambda: tables.ids_of_own_rows("zz"),
    ]
    assert [said(call) for call in calls] == [expected] * len(calls)
    wrong: Any = -0.1
    assert (
        said(lambda: tables.set_learning_rate(wrong))
        == "learning_rate: -0.1 is not allowed: a number, at least 0"
    )
    assert said(lambda: tables.set_learning_rate(0.1, {"x": wrong})).startswith(
        "learning_rate of table 'x': -0.1"
    )


def test_an_output_layer_of_a_feature_that_no_table_has_is_refused(tables: ShardedTables) -> None:
    expected = "feature 'x': no table has it; there are w, a, b"
    assert said(lambda: ExactSoftmax(tables, "x")) == expected


def test_one_table_is_frozen_by_its_name(tables: ShardedTables) -> None:
    tables.freeze("w")
    before = tables.weight("w").clone(), tables.weight("x").clone()
    ids = torch.arange(7)
    rows = tables.lookup({"w": ids, "a": ids})
    (rows.vectors("w").sum() + rows.vectors("a").sum()).backward()
    rows.backward()
    assert torch.equal(before[0], tables.weight("w"))
    assert not torch.equal(before[1], tables.weight("x"))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [({"w": [1, 2]}, r"feature 'w': 1 is not allowed: ids are a tensor .*torch.tensor\(\[1, 2\]\)"),
     ({"w": 3}, "feature 'w': 3 is not allowed: ids are a tensor"),
     ({"w": None}, "feature 'w': None is not allowed"), ({"w": "ab"}, "feature 'w': 'ab' is not"),
     ({"w": np.array([0.5])}, r"feature 'w': array\(\[0\.5\]\) is not allowed"),
     ({"w": torch.tensor([True])}, "feature 'w': ids are whole numbers, not torch.bool"),
     ({"w": torch.tensor([1.0])}, "table 'w': ids are whole numbers, not torch.float32"),
     (torch.tensor([1]), r"ids: tensor\(\[1\]\) is not allowed: .* as {'w': ids}"),
     (None, "ids: None is not allowed: give them by feature")],
)  # fmt: skip
def test_what_are_no_ids_is_refused(tables: ShardedTables, ids: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        tables.lookup(ids)


def test_arrays_of_numpy_are_ids(tables: ShardedTables) -> None:
    ids = torch.tensor([[3, 1], [3, 8]])
    expected = tables.lookup({"w": ids}).vectors("w")
    given: list[Any] = [ids.numpy(), ids.numpy().astype(np.uint8), [ids.numpy()], ids.int()]
    for array in given:
        assert torch.equal(tables.lookup({"w": array}).vectors("w"), expected)


def test_rows_that_were_not_looked_up_are_named(tables: ShardedTables) -> None:
    rows = tables.lookup({"w": torch.tensor([1])})
    for feature in ("zz", "a"):
        assert said(lambda name=feature: rows.vectors(name)) == (  # type: ignore[misc]
            f"feature {feature!r} was not looked up in this step; there are w"
        )
    assert said(lambda: rows.vectors("w", 1)).startswith("feature 'w': number: 1 is not below 1")


def test_gradients_are_given_to_the_tables_once(tables: ShardedTables) -> None:
    rows = tables.lookup({"w": torch.tensor([1])})
    rows.vectors("w").sum().backward()
    rows.backward()
    after = tables.weight("w").clone()
    assert "have been given to the tables already" in said(rows.backward)
    with torch.no_grad():
        read = tables.lookup({"w": torch.tensor([1])})
    assert "looked up without a gradient" in said(read.backward)
    assert torch.equal(after, tables.weight("w"))


def test_tables_show_their_sizes(tables: ShardedTables) -> None:
    assert repr(tables) == "ShardedTables(w: 9 × 4, x: 7 × 8; memory device, worker 0 of 1)"

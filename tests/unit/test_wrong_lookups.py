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

WHOLE = [
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64,
]  # fmt: skip


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
     ({"w": torch.tensor([1.0])}, "feature 'w': ids are whole numbers, not torch.float32"),
     (torch.tensor([1]), r"ids: tensor\(\[1\]\) is not allowed: .* as {'w': ids}"),
     (None, "ids: None is not allowed: give them by feature")],
)  # fmt: skip
def test_what_are_no_ids_is_refused(tables: ShardedTables, ids: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        tables.lookup(ids)


def test_arrays_of_numpy_are_ids(tables: ShardedTables) -> None:
    ids = torch.tensor([[3, 1], [3, 8]])
    expected = tables.lookup({"w": ids}).vectors("w")
    for dtype in "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">i4":
        array: Any = ids.numpy().astype(dtype)
        assert torch.equal(tables.lookup({"w": array}).vectors("w"), expected), dtype
        assert torch.equal(tables.lookup({"w": [array]}).vectors("w"), expected), dtype
    for of_torch in WHOLE:
        assert torch.equal(tables.lookup({"w": ids.to(of_torch)}).vectors("w"), expected), of_torch


def test_ids_above_what_int64_holds_are_not_taken_for_others(tables: ShardedTables) -> None:
    large: list[Any] = [np.array([1, 2**64 - 1], np.uint64)]
    large += [torch.from_numpy(array) for array in large]
    for ids in large:
        assert said(lambda ids=ids: tables.lookup({"w": ids})) == (  # type: ignore[misc]
            f"table 'w': {2**63 - 1} is no id; allowed are 0 to 8"
        )


def test_rows_that_were_not_looked_up_are_named(tables: ShardedTables) -> None:
    rows = tables.lookup({"w": torch.tensor([1])})
    for feature in ("zz", "a"):
        assert said(lambda name=feature: rows.vectors(name)) == (  # type: ignore[misc]
            f"feature {feature!r} was not looked up in this step; there are w"
        )
    assert said(lambda: rows.vectors("w", 1)).startswith("feature 'w': number: 1 is not below 1")
    assert torch.equal(rows.vectors("w", np.int64(0)), rows.vectors("w"))


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


def test_gradients_come_before_the_tables_are_asked_to_take_them(tables: ShardedTables) -> None:
    """Else a step would train nothing, and say nothing."""
    before = tables.weight("w").clone()
    rows = tables.lookup({"w": torch.tensor([1])})
    loss = rows.vectors("w").sum()
    assert said(rows.backward) == (
        "backward: none of these rows has a gradient on any worker: call backward() of the loss "
        "first, from which they get theirs. Where none is to have one: backward(proven=True)"
    )
    assert torch.equal(before, tables.weight("w"))
    loss.backward()  # nothing is lost
    rows.backward()
    assert not torch.equal(before, tables.weight("w"))


def test_a_step_without_examples_or_with_frozen_tables_has_no_gradient(
    tables: ShardedTables,
) -> None:
    tables.lookup({}).backward()
    tables.freeze(["w", "x"])
    rows = tables.lookup({"w": torch.tensor([1])})
    rows.vectors("w")
    rows.backward()


def test_rows_that_were_looked_up_last_are_trained(tables: ShardedTables) -> None:
    first = tables.lookup({"w": torch.tensor([1])})
    first.vectors("w").sum().backward()
    with torch.no_grad():
        tables.lookup({"w": torch.tensor([2])})  # a validation in between does no harm
    second = tables.lookup({"w": torch.tensor([3])})
    second.vectors("w").sum().backward()
    before = tables.weight("w").clone()
    assert "looked up for training again since these" in said(first.backward)
    assert torch.equal(before, tables.weight("w"))
    second.backward()
    assert not torch.equal(before, tables.weight("w"))


def test_a_request_is_fetched_once(tables: ShardedTables) -> None:
    request = tables.request(tables.wanted({"w": torch.tensor([1])}))
    tables.fetch(request)
    assert said(lambda: tables.fetch(request)).startswith("request: it is fetched once")


@pytest.mark.parametrize(
    ("call", "expected"),
    [("freeze(5)", "tables: 5 is not allowed: names of tables"),
     ("freeze([['w']])", "table ['w']: there is none of that name; there are w, x"),
     ("weight(['w'])", "table ['w']: there is none of that name; there are w, x"),
     ("set_learning_rate(0.1, ['w'])", "own_rates: ['w'] is not allowed: rates by the names"),
     ("set_learning_rate(float('nan'))", "learning_rate: nan is not allowed: a number, at least 0"),
     ("set_step(0)", "step: 0 is not allowed: a whole number, at least 1"),
     ("set_step(True)", "step: True is not allowed: a whole number, at least 1"),
     ("request(3)", "wanted: 3 is not allowed: what `wanted` gives"),
     ("fetch(3)", "request: 3 is not allowed: what `request` gives")],
)  # fmt: skip
def test_what_calls_are_given_is_named(tables: ShardedTables, call: str, expected: str) -> None:
    assert said(lambda: eval(f"tables.{call}", {"tables": tables})).startswith(expected)


@pytest.mark.parametrize(
    ("table", "expected"),
    [({"trained_whole": "no"}, "trained_whole: 'no' is not allowed: True or False"),
     ({"trained_whole": 1}, "trained_whole: 1 is not allowed: True or False"),
     ({"rows": True}, "rows: True is not allowed: a whole number in 1 … 2,147,483,647"),
     ({"rows": torch.tensor([3])}, "rows: tensor([3]) is not allowed: a whole number"),
     ({"initial_scale": float("nan")}, "initial_scale: nan is not allowed: a number, at least 0"),
     ({"learning_rate": True}, "learning_rate: True is not allowed: a number, at least 0")],
)  # fmt: skip
def test_what_a_table_is_given_is_named(alone: Group, table: dict[str, Any], expected: str) -> None:
    made = Table(**{"rows": 9, "width": 4, **table})
    assert said(lambda: ShardedTables({"w": made}, alone)).startswith(f"table 'w': {expected}")


def test_tables_show_their_sizes(tables: ShardedTables) -> None:
    assert repr(tables) == "ShardedTables(w: 9 × 4, x: 7 × 8; memory device, worker 0 of 1)"

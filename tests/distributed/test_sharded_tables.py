"""Tables of any model against `nn.Embedding` and the optimizers written out, on one process."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingConfig

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.checkpoint.of_tables import Checkpoints
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.row_order import RowOrder
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group
from tests.distributed.pool import RemoteError, WorkerPool

RATE, OWN_RATE, EPS, SEED, STEPS = 0.1, 0.02, 1e-8, 5, 4
# Three widths, of which the kernels pad two; one table with two features, one with fewer rows than
# workers.
TABLES = {
    "user": Table(13, 7),
    "item": Table(9, 4, learning_rate=OWN_RATE),
    "word": Table(17, 7, features=("read", "written"), initial_scale=0.5),
    "tag": Table(2, 10),
}
FEATURES = {"user": "user", "item": "item", "read": "word", "written": "word", "tag": "tag"}
Values = dict[str, Tensor]


def ids_of(step: int) -> dict[str, Tensor]:
    """The ids of all workers' examples; in the second step there are two."""
    draw = torch.Generator().manual_seed(step)
    count = 2 if step == 2 else 11
    return {
        feature: torch.randint(TABLES[table].rows, (count,), generator=draw)
        for feature, table in FEATURES.items()
    }


def loss_of(vectors: Values) -> Tensor:
    """Sum over examples of something in which every feature has a part."""
    draw = torch.Generator().manual_seed(99)
    to_word, to_user = torch.randn(4, 7, generator=draw), torch.randn(10, 7, generator=draw)
    score = vectors["user"] * vectors["read"] + (vectors["item"] @ to_word) * vectors["written"]
    score = score + (vectors["tag"] @ to_user) * vectors["user"]
    return functional.softplus(-score.sum(1)).sum()


class Reference:
    """One process that holds everything."""

    def __init__(self, optimizer: str) -> None:
        self.optimizer = optimizer
        self.tables: dict[str, nn.Embedding] = {}
        for name, table in TABLES.items():
            self.tables[name] = nn.Embedding(table.rows, table.width)
            fill_initial_rows(
                self.tables[name].weight.data, seed=SEED, table=name, first_row=0, scale=table.scale
            )
        by_row = optimizer == "rowwise_adagrad"
        self.sums = {
            name: torch.zeros(t.rows, 1 if by_row else t.width) for name, t in TABLES.items()
        }

    def vectors(self, ids: dict[str, Tensor]) -> Values:
        return {
            feature: self.tables[name](RowOrder(TABLES[name].rows).rows_of(ids[feature]))
            for feature, name in FEATURES.items()
        }

    def step(self, step: int) -> float:
        for table in self.tables.values():
            table.weight.grad = None
        ids = ids_of(step)
        loss = loss_of(self.vectors(ids)) / len(ids["user"])
        loss.backward()
        with torch.no_grad():
            for name, table in self.tables.items():
                assert table.weight.grad is not None
                self.update(name, table.weight, table.weight.grad)
        return float(loss.detach())

    def update(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        rate = OWN_RATE if name == "item" else RATE
        if self.optimizer == "sgd":
            weight -= rate * gradient
            return
        square = gradient.square()
        self.sums[name] += (
            square.mean(1, keepdim=True) if self.optimizer == "rowwise_adagrad" else square
        )
        weight -= rate * gradient / (self.sums[name].sqrt() + EPS)


def built(group: Group, optimizer: str = "rowwise_adagrad", tables: Any = None) -> ShardedTables:
    return ShardedTables(
        tables or TABLES, group, optimizer=optimizer, learning_rate=RATE, eps=EPS, seed=SEED
    )


def train(tables: ShardedTables, step: int, *, dropped: bool = False) -> float:
    """A step on this worker's part of the examples; worker 0 has none of the second step's."""
    group = tables.group
    tables.set_learning_rate(RATE)
    whole = ids_of(step)
    place = (group.rank - 1) % group.num_workers
    own = {feature: ids.tensor_split(group.num_workers)[place] for feature, ids in whole.items()}
    rows = tables.lookup(own)
    loss = loss_of({feature: rows.vectors(feature) for feature in own})
    loss = loss * group.num_workers / len(whole["user"])
    loss.backward()
    if not dropped:
        rows.backward()
    return float(loss.detach()) / group.num_workers


def held(tables: ShardedTables) -> Values:
    """This worker's rows and its optimizer's state."""
    found: Values = {}
    for name in tables.specs:
        found[name] = tables.weight(name).clone()
        for state in tables.optimizer_state(name).values():
            found[f"{name} state"] = (state.unsqueeze(1) if state.dim() == 1 else state).clone()
    return found


def check(results: list[Values], reference: Reference) -> None:
    for name, table in reference.tables.items():
        whole = torch.cat([result[name] for result in results])
        torch.testing.assert_close(whole, table.weight.detach(), rtol=1e-5, atol=1e-6)
        if reference.optimizer != "sgd":
            state = torch.cat([result[f"{name} state"] for result in results])
            torch.testing.assert_close(state, reference.sums[name], rtol=1e-5, atol=1e-7)


def steps_of(group: Group, optimizer: str, by_torchrec: bool) -> tuple[list[float], Values, int]:
    tables: Any = TABLES
    if by_torchrec:
        tables = [
            EmbeddingConfig(num_embeddings=13, embedding_dim=7, name="user"),
            EmbeddingConfig(num_embeddings=9, embedding_dim=4, name="item"),
        ]
    tables = built(group, optimizer, tables)
    if by_torchrec:
        return [], held(tables), len(tables._modules)
    losses = [train(tables, step) for step in range(1, STEPS + 1)]
    return losses, held(tables), len(tables._modules)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_training_is_that_of_one_process(
    workers: WorkerPool, num_workers: int, optimizer: str
) -> None:
    reference = Reference(optimizer)
    expected = [reference.step(step) for step in range(1, STEPS + 1)]
    results = workers.run(num_workers, steps_of, optimizer, False)
    losses = [sum(parts) for parts in zip(*(losses for losses, _, _ in results), strict=True)]
    assert losses == pytest.approx(expected, rel=1e-5)
    check([values for _, values, _ in results], reference)
    assert {modules for _, _, modules in results} == {3}  # one for each width, and no more


def test_torchrecs_configurations_make_the_same_tables(workers: WorkerPool) -> None:
    ((_, values, modules),) = workers.run(1, steps_of, "sgd", True)
    expected = Reference("sgd")
    assert values.keys() == {"user", "item"}
    for name, found in values.items():
        assert torch.equal(found, expected.tables[name].weight)
    assert modules == 2


def dropped_and_frozen(group: Group) -> tuple[Values, Values, Values, Values]:
    tables = built(group)
    train(tables, 1)
    before = held(tables)
    train(tables, 2, dropped=True)
    dropped = held(tables)
    tables.freeze(frozenset({"word"}))
    train(tables, 2)
    frozen = held(tables)
    tables.freeze(frozenset())
    train(tables, 2)
    return before, dropped, frozen, held(tables)


def test_a_step_is_dropped_between_its_halves_and_tables_can_be_frozen(workers: WorkerPool) -> None:
    results = workers.run(2, dropped_and_frozen)
    for before, dropped, frozen, _ in results:
        for name in before:
            assert torch.equal(before[name], dropped[name]), name
        assert torch.equal(before["word"], frozen["word"])
        assert torch.equal(before["word state"], frozen["word state"])
        assert not torch.equal(before["user"], frozen["user"])
    assert any(not torch.equal(frozen["word"], after["word"]) for *_, frozen, after in results)


def save(group: Group, uri: str) -> None:
    tables = built(group)
    dense = torch.zeros(3)
    with Checkpoints(uri, tables, dense={"mixed": dense}, keep_last=2) as checkpoints:
        assert checkpoints.load() == 0
        for step in (1, 2, 3):
            train(tables, step)
            dense += step
            checkpoints.values = {"epoch": step * 10}
            checkpoints.save(step)


def go_on(group: Group, uri: str) -> tuple[int, list[float], Any, Values]:
    tables, dense = built(group), torch.zeros(3)
    checkpoints = Checkpoints(uri, tables, dense={"mixed": dense})
    step = checkpoints.load()
    train(tables, STEPS)
    return step, dense.tolist(), checkpoints.values, held(tables)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_two_workers_have_saved_others_go_on_with(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    workers.run(2, save, str(tmp_path))
    assert list_steps(str(tmp_path)) == [2, 3]
    reference = Reference("rowwise_adagrad")
    for step in range(1, STEPS + 1):
        reference.step(step)
    results = workers.run(num_workers, go_on, str(tmp_path))
    for step, dense, values, _ in results:
        assert (step, dense, values) == (3, [6.0] * 3, {"epoch": 30})
    check([values for *_, values in results], reference)


def load_others(group: Group, uri: str) -> None:
    Checkpoints(uri, built(group, tables={"user": Table(14, 7)})).load()


def test_checkpoints_of_other_tables_are_refused(workers: WorkerPool, tmp_path: Path) -> None:
    workers.run(1, save, str(tmp_path))
    with pytest.raises(RemoteError, match=r"holds table\.user\.weight as F32 13 × 7"):
        workers.run(1, load_others, str(tmp_path))


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


A, B = {"a": Table(8, 4)}, {"b": Table(8, 4)}
UNLIKE: dict[str, tuple[list[dict[str, Table]], list[dict[str, Any]]]] = {
    "worker 0 has table 'a': .*, worker 1 table 'b'": ([{**A, **B}, {**B, **A}], [{}, {}]),
    "worker 0 has optimizer: .*, worker 1 table 'b'": ([A, {**A, **B}], [{}, {}]),
    "rows=8.*, worker 1 table 'a'.*rows=9": ([A, {"a": Table(9, 4)}], [{}, {}]),
    "initial_scale=None.* initial_scale=0": ([A, {"a": Table(8, 4, initial_scale=0)}], [{}, {}]),
    "seed: 0, worker 1 seed: 1": ([A, A], [{"seed": 0}, {"seed": 1}]),
    "'sgd', worker 1 optimizer: 'adagrad'": (
        [A, A], [{"optimizer": "sgd"}, {"optimizer": "adagrad"}]),
    r"0\.05, worker 1 learning_rate: 0\.1": ([A, A], [{}, {"learning_rate": 0.1}]),
}  # fmt: skip


def unlike(group: Group) -> list[str]:
    return [
        said(partial(ShardedTables, tables[group.rank], group, **settings[group.rank]))
        for tables, settings in UNLIKE.values()
    ]


def test_workers_with_unlike_tables_are_refused_on_all(workers: WorkerPool) -> None:
    here, there = workers.run(2, unlike)
    assert here == there
    for text, expected in zip(here, UNLIKE, strict=True):
        assert re.search(expected, text), text


def draws_around_tables(group: Group) -> list[float]:
    torch.manual_seed(5)
    ShardedTables({"a": Table(1000, 4)}, group)
    return torch.rand(3).tolist()


def test_tables_leave_the_callers_draws_alone(workers: WorkerPool) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    for num_workers in (1, 2):
        assert workers.run(num_workers, draws_around_tables) == [expected] * num_workers


def refusals(group: Group) -> list[str]:
    tables = built(group)
    return [
        said(lambda: tables.lookup({"usr": [torch.tensor([1])]})),
        said(lambda: tables.lookup({"user": [torch.tensor([3, 13, 2])]})),
        said(lambda: tables.lookup({"read": [], "written": [torch.tensor([[3], [-1]])]})),
        said(lambda: tables.lookup({"user": torch.tensor([1.0])})),
        said(lambda: built(group, "adamw")),
        said(lambda: ShardedTables(A, group.process_group)),  # type: ignore[arg-type]
        said(lambda: Checkpoints("memory://x", tables, dense={"table.user.weight": torch.ones(1)})),
    ]


def test_what_cannot_be_looked_up_is_named(workers: WorkerPool) -> None:
    ((feature, large, negative, fraction, optimizer, no_group, dense),) = workers.run(1, refusals)
    assert feature == "feature 'usr': no table has it; there are user, item, read, written, tag"
    assert large == "table 'user': 13 is no id; allowed are 0 to 12"
    assert negative == "table 'word': -1 is no id; allowed are 0 to 16"
    assert fraction == "feature 'user': ids are whole numbers, not torch.float32"
    assert no_group.endswith("is not allowed: what `joined_group` gives in its block")
    assert dense.startswith("dense: 'table.user.weight' is not allowed")
    assert optimizer.startswith("optimizer: 'adamw' is not allowed: one of rowwise_adagrad, ")

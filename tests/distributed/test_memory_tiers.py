"""What of the memory tiers shows without a GPU: when a cache is flushed, what all workers agree on,
and that narrow types reach the exchange.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_embed.embedding import tables
from dist_embed.embedding.settings import Exchange
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.parallel.collectives import least_over_workers
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Sharded, Tiny, joined, random_pairs


def least(group: Group, values: list[int]) -> int:
    return least_over_workers(values[group.rank], group)


def test_all_workers_find_the_least_value(workers: WorkerPool) -> None:
    assert workers.run(3, least, [2**40, 2**35 + 1, 2**36]) == [2**35 + 1] * 3
    assert workers.run(1, least, [7]) == [7]


def calls_to_a_cache(group: Group) -> dict[str, list[str]]:
    """What a cache is told in the life of the tables, by what is done with them."""
    sharded = Sharded(Tiny(num_samples=9), group)
    lookup, calls = sharded.lookup, []
    lookup.tier = "uvm_caching"  # the CPU's kernels have no cache: they are asked all the same
    for kernel in lookup.kernels:
        kernel.flush = lambda: calls.append("flush")
        kernel.reset_cache_states = lambda: calls.append("reset")
    told: dict[str, list[str]] = {}

    def note(what: str) -> None:
        told[what] = calls.copy()
        calls.clear()

    lookup.weight("source")
    note("read before any step")
    sharded.step(1, random_pairs(6, 1, 23, 31))
    note("step")
    lookup.weight("source")
    note("read")
    lookup.weight("decoder")
    lookup.before_reading()
    note("read again")
    with torch.no_grad():
        lookup.lookup({"source": [torch.tensor([1])]})
    lookup.weight("decoder")
    note("looked up without a gradient")
    sharded.step(2, random_pairs(6, 2, 23, 31))
    lookup.after_writing()
    lookup.before_reading()
    note("written after a step")
    rows = lookup.lookup({"source": [torch.tensor([1])]})
    lookup.weight("source")
    rows.vectors("source", 0).sum().backward()
    rows.backward()
    lookup.weight("source")
    note("read in the middle of a step and after it")
    lookup.tier = "device"
    sharded.step(3, random_pairs(6, 3, 23, 31))
    lookup.weight("source")
    note("on the device")
    return told


def test_a_cache_is_flushed_where_it_is_newer_and_only_there(workers: WorkerPool) -> None:
    (told,) = workers.run(1, calls_to_a_cache)
    assert told == {
        "read before any step": [],
        "step": [],
        "read": ["flush"],
        "read again": [],
        "looked up without a gradient": [],
        "written after a step": ["reset"],
        "read in the middle of a step and after it": ["flush"],
        "on the device": [],
    }


def train_with(group: Group, exchange: Exchange) -> Any:
    # gloo carries fp16; the refusal is for users, who would gain nothing from it.
    allowed, tables.problems_without_cuda = tables.problems_without_cuda, lambda **how: []
    try:
        sharded = Sharded(Tiny(exchange=exchange), group)
    finally:
        tables.problems_without_cuda = allowed
    for number in (1, 2, 3):
        sharded.step(number, random_pairs(6, number, 23, 31))
    return sharded.tables()


def own_rows_with(group: Group, exchange: Exchange) -> tuple[float, torch.Tensor, torch.Tensor]:
    """How far a step's own rows differ from the table; a gradient, and what it has moved."""
    allowed, tables.problems_without_cuda = tables.problems_without_cuda, lambda **how: []
    try:
        lookup = ShardedTables(
            {"t": Table(50, 8, initial_scale=1.0, trained_whole=True)}, group, optimizer="sgd",
            learning_rate=1.0, exchange=exchange,
        )  # fmt: skip
    finally:
        tables.problems_without_cuda = allowed
    rows = lookup.lookup({"t": [torch.tensor([4])]})
    before, own = lookup.weight("t").clone(), rows.own["t"]
    assert own.gradient is not None
    difference = float((own.weight - before).abs().max())
    gradient = torch.randn(8, generator=torch.Generator().manual_seed(group.rank))
    own.gradient.begin_adding(gradient)
    rows.backward(proven=True)
    return difference, gradient, before - lookup.weight("t")


@pytest.mark.parametrize("exchange", ["fp32", "fp16", "bf16"])
def test_own_rows_and_their_gradients_do_not_cross_the_network(
    workers: WorkerPool, exchange: Exchange
) -> None:
    for difference, gradient, moved in workers.run(2, own_rows_with, exchange):
        assert difference == 0
        torch.testing.assert_close(moved, gradient.expand_as(moved), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_narrow_exchange_changes_what_crosses_the_network_a_little(
    workers: WorkerPool, num_workers: int
) -> None:
    wide, _ = joined(workers.run(num_workers, train_with, "fp32"), "decoder")
    narrow, _ = joined(workers.run(num_workers, train_with, "fp16"), "decoder")
    assert torch.equal(wide, narrow) == (num_workers == 1)  # nothing is exchanged then
    torch.testing.assert_close(narrow, wide, rtol=0, atol=5e-3)

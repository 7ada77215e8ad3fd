from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.embedding.plan import shard_of
from dist_embed.embedding.row_order import RowOrder


@pytest.mark.parametrize("num_rows", [*range(1, 65), 1000, 1024, 9973, 10_000, 30_030])
def test_every_row_holds_exactly_one_id(num_rows: int) -> None:
    ids = torch.arange(num_rows)
    rows = RowOrder(num_rows).rows_of(ids)
    assert torch.equal(rows.sort().values, ids)


@settings(max_examples=50)
@given(st.data(), st.integers(1, 2**31 - 1))
def test_ids_of_undoes_rows_of(data: st.DataObject, num_rows: int) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1)))
    ids = torch.cat([ids, torch.tensor([0, num_rows - 1])]).view(-1, 1)
    order = RowOrder(num_rows)
    rows = order.rows_of(ids)
    assert rows.shape == ids.shape
    assert bool((rows >= 0).all())
    assert bool((rows < num_rows).all())
    assert torch.equal(order.ids_of(rows), ids)
    assert torch.equal(order.rows_of(order.ids_of(ids)), ids)


@settings(max_examples=50)
@given(st.integers(2, 2**31 - 1))
def test_the_multiplier_is_the_nearest_coprime(num_rows: int) -> None:
    wanted, found = round(num_rows * 0.6180339887498949), RowOrder(num_rows).multiplier
    assert math.gcd(found, num_rows) == 1
    nearer = range(max(1, wanted - abs(found - wanted) + 1), wanted + abs(found - wanted))
    assert all(math.gcd(candidate, num_rows) > 1 for candidate in nearer)


@pytest.mark.parametrize("num_rows", [10_000, 9_973, 27_001, 65_536, 1_000_003])
@pytest.mark.parametrize("num_workers", [2, 3, 4, 7, 8, 16])
def test_frequent_ids_are_spread_evenly_over_shards(num_rows: int, num_workers: int) -> None:
    physical = shard_of(num_rows, 0, num_workers).physical_rows
    for frequent in (100, 500, 2000, num_rows // 2):
        rows = RowOrder(num_rows).rows_of(torch.arange(frequent))
        held = torch.bincount(rows // physical, minlength=num_workers)
        # Off by a few rows (6 is the worst of these), not by a fraction of the prefix.
        assert float((held - frequent / num_workers).abs().max()) <= 8


@pytest.mark.parametrize("num_rows", [0, -3, 2**31, 2**40])
def test_sizes_out_of_range_are_refused(num_rows: int) -> None:
    with pytest.raises(ValueError, match=f"{num_rows}"):
        RowOrder(num_rows)


def test_the_largest_size_does_not_overflow() -> None:
    num_rows = 2**31 - 1
    order = RowOrder(num_rows)
    expected = ((num_rows - 1) * order.multiplier) % num_rows  # Python's integers are exact
    assert order.rows_of(torch.tensor(num_rows - 1)).item() == expected


def test_the_order_is_fixed_for_stored_models() -> None:
    # A change here makes every stored checkpoint decode to other words.
    assert RowOrder(10).rows_of(torch.arange(10)).tolist() == [0, 7, 4, 1, 8, 5, 2, 9, 6, 3]
    assert RowOrder(10_000).multiplier == 6181


def test_rows_written_out() -> None:
    # 10 · 0.618 = 6.18: 6 shares a divisor with 10, and 7 is nearer than 5 by the sign tried first.
    assert RowOrder(10).rows_of(torch.arange(10)).tolist() == [0, 7, 4, 1, 8, 5, 2, 9, 6, 3]
    # 16 · 0.618 = 9.9, 10 is even: 11.
    assert RowOrder(16).rows_of(torch.tensor([[1, 2], [3, 15]])).tolist() == [[11, 6], [1, 5]]
    assert RowOrder(1).rows_of(torch.tensor([0])).tolist() == [0]

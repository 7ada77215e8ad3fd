from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.embedding.initial_values import BLOCK_ROWS, fill_initial_rows
from dist_embed.embedding.plan import shard_of


def initial(first: int, rows: int, seed: int = 1, table: str = "t", width: int = 4) -> torch.Tensor:
    out = torch.full((rows, width), float("nan"))
    fill_initial_rows(out, seed=seed, table=table, first_row=first, scale=0.1)
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3 * BLOCK_ROWS), st.integers(1, 9))
def test_any_number_of_shards_holds_the_same_rows(num_rows: int, num_workers: int) -> None:
    shards = [shard_of(num_rows, rank, num_workers) for rank in range(num_workers)]
    parts = [initial(shard.first_row, shard.num_rows) for shard in shards]
    assert torch.equal(torch.cat(parts), initial(0, num_rows))


@pytest.mark.parametrize("first", [0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1])
@pytest.mark.parametrize("rows", [0, 1, 2, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_rows_at_block_borders_are_the_same_from_anywhere(first: int, rows: int) -> None:
    assert torch.equal(initial(first, rows), initial(0, 3 * BLOCK_ROWS)[first : first + rows])


def test_tables_seeds_and_rows_differ() -> None:
    start = initial(0, 2 * BLOCK_ROWS)
    assert not torch.equal(start, initial(0, 2 * BLOCK_ROWS, seed=2))
    assert not torch.equal(start, initial(0, 2 * BLOCK_ROWS, table="other"))
    assert len(start.unique(dim=0)) == 2 * BLOCK_ROWS


def test_values_are_normal_with_the_given_scale() -> None:
    values = initial(0, 5000, width=64)
    assert values.mean().item() == pytest.approx(0, abs=5e-4)
    assert values.std().item() == pytest.approx(0.1, rel=5e-3)
    assert (values.abs() < 0.1).float().mean().item() == pytest.approx(0.6827, abs=5e-3)


def test_other_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial(0, 10)
    assert torch.equal(torch.rand(3), expected)


def test_a_shard_of_a_larger_tensor_can_be_filled() -> None:
    physical = torch.zeros(6, 4)
    fill_initial_rows(physical[:4], seed=1, table="t", first_row=2, scale=0.1)
    assert torch.equal(physical[:4], initial(2, 4))
    assert physical[4:].eq(0).all()


def test_values_written_out() -> None:
    """A fresh run starts as it always has: block by block of 1024 rows, by SHA-256 of its name."""
    out = torch.empty(3, 4)
    fill_initial_rows(out, seed=7, table="decoder", first_row=2047, scale=0.25)
    expected = []
    for block, rows in ((1, [1023]), (2, [0, 1])):
        digest = hashlib.sha256(f"7/decoder/{block}".encode()).digest()
        seed = int.from_bytes(digest[:8], "little") // 2
        values = torch.randn(1024, 4, generator=torch.Generator().manual_seed(seed))
        expected += [values[row] * 0.25 for row in rows]
    assert torch.equal(out, torch.stack(expected))

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.embedding.lookup import table_specs
from dist_embed.embedding.tables import Shard, TableSpec, shard_of

ROWS = {"source": 7, "target": 9, "output": 9}


@given(st.integers(1, 5000), st.integers(1, 40))
def test_shards_hold_every_row_once(num_rows: int, num_workers: int) -> None:
    shards = [shard_of(num_rows, rank, num_workers) for rank in range(num_workers)]
    held = [row for shard in shards for row in range(shard.first_row, shard.end_row)]
    assert held == list(range(num_rows))


@given(st.integers(1, 5000), st.integers(1, 40))
def test_physical_shards_are_equal_and_never_empty(num_rows: int, num_workers: int) -> None:
    shards = [shard_of(num_rows, rank, num_workers) for rank in range(num_workers)]
    (physical,) = {shard.physical_rows for shard in shards}
    assert physical >= 1
    assert all(0 <= shard.num_rows <= physical for shard in shards)
    assert num_rows <= physical * num_workers < num_rows + num_workers
    # A row's worker is row // physical: TorchRec finds it so.
    assert all(s.num_rows == 0 or s.first_row == rank * physical for rank, s in enumerate(shards))


def test_fewer_rows_than_workers_leave_some_without() -> None:
    assert [shard_of(2, rank, 3) for rank in range(3)] == [
        Shard(0, 1, 1),
        Shard(1, 1, 1),
        Shard(2, 0, 1),
    ]


def test_sharing_names_a_table_for_several_roles() -> None:
    assert table_specs(ROWS, 4, "none") == {
        name: TableSpec(name, rows, 4) for name, rows in ROWS.items()
    }
    assert table_specs(ROWS, 4, "decoder") == {
        "source": TableSpec("source", 7, 4),
        "decoder": TableSpec("decoder", 9, 4),
    }
    same = dict.fromkeys(ROWS, 9)
    assert table_specs(same, 4, "all") == {"shared": TableSpec("shared", 9, 4)}


def test_sharing_different_vocabularies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share_embeddings='all'.*9 rows against 7.*shared=true"):
        table_specs(ROWS, 4, "all")

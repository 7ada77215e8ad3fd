from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.embedding import tables
from dist_embed.embedding.plan import Shard, TableSpec, shard_of
from dist_embed.embedding.settings import Exchange
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.embedding.tables import exchange_codecs, lies_in_host_memory, tier_of_table
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group


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


@pytest.mark.parametrize(
    ("how", "said"),
    [({"memory": "uvm"}, "memory: 'uvm'"),
     ({"memory": "uvm_caching"}, "memory: 'uvm_caching'"),
     ({"weights": "fp16"}, "weights: 'fp16'"),
     ({"exchange": "bf16"}, "exchange: 'bf16'"),
     ({"optimizer": "adam"}, "optimizer: 'adam'")],
)  # fmt: skip
def test_what_needs_cuda_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(tables, "EmbeddingCollection", None)  # calling it would fail
    cpu = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        ShardedTables({"t": Table(9, 4)}, cpu, **({"optimizer": "sgd"} | how))
    assert str(caught.value).startswith(f"{said} is not allowed on the CPU")
    assert "\n" not in str(caught.value)
    assert "cluster" not in str(caught.value)  # they have no configuration


def test_rows_that_fbgemm_cannot_update_on_a_gpu_are_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class TriedError(Exception):
        pass

    def build(**how: Any) -> None:
        raise TriedError

    monkeypatch.setattr(tables, "EmbeddingCollection", build)
    # With cluster.device=auto, which a configuration's checks take for no device.
    for device, width, error in (
        ("cuda", 2052, UserError), ("cuda", 2048, TriedError), ("cpu", 2052, TriedError),
    ):  # fmt: skip
        group = Group(0, 1, 1, torch.device(device), None)  # type: ignore[arg-type]
        with pytest.raises(error, match="width: 2052" if error is UserError else None):
            tables.build_sharded_tables(
                [TableSpec("a", 9, 4), TableSpec("b", 9, width)], group, optimizer="sgd",
                learning_rates=dict.fromkeys("ab", 0.1), eps=1e-8,
            )  # fmt: skip


def test_gradients_keep_their_range_on_the_network() -> None:
    small = torch.tensor([1e-8, 3e-20, -2.5, 1e30])
    sent: dict[Exchange, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
    for exchange, dtype in sent.items():
        codecs = exchange_codecs(exchange, torch.device("cuda"))
        assert codecs is not None
        codec = codecs["SEQUENCE_EMBEDDINGS_ALL_TO_ALL"]
        assert codec.forward.encode(small).dtype == dtype
        back = codec.backward.decode(codec.backward.encode(small))
        torch.testing.assert_close(back, small, rtol=2**-8, atol=0)
    assert exchange_codecs("fp32", torch.device("cuda")) is None


def test_a_table_that_is_trained_whole_has_no_cache() -> None:
    assert tier_of_table("output", "uvm_caching", {"output"}) == "uvm"
    assert tier_of_table("source", "uvm_caching", {"output"}) == "uvm_caching"
    assert tier_of_table("output", "device", {"output"}) == "device"
    assert tier_of_table("output", "uvm_caching", ()) == "uvm_caching"


def test_rows_of_the_cpu_are_no_unified_memory() -> None:
    assert not lies_in_host_memory(torch.zeros(3))

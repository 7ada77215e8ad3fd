from __future__ import annotations

from pathlib import Path

import pytest

from dist_embed.embedding.memory import (
    PROCESS_BYTES,
    available_bytes,
    host_table_bytes,
    table_bytes,
    worker_bytes,
)
from dist_embed.embedding.plan import TableSpec, Tier
from dist_embed.embedding.tables import OPTIMIZERS

SPEC = TableSpec("t", 1000, 64)


@pytest.mark.parametrize(
    ("optimizer", "values_per_row"),
    [("sgd", 64), ("rowwise_adagrad", 65), ("adagrad", 128), ("adam", 192)],
)
def test_a_row_costs_its_values_and_its_optimizer_state(
    optimizer: str, values_per_row: int
) -> None:
    assert table_bytes(SPEC, optimizer, 1) == 1000 * values_per_row * 4
    assert table_bytes(SPEC, optimizer, 3) == 334 * values_per_row * 4


def test_narrow_rows_have_wide_state() -> None:
    assert table_bytes(SPEC, "sgd", 1, "fp16") == 1000 * 64 * 2
    assert table_bytes(SPEC, "rowwise_adagrad", 1, "fp16") == 1000 * (64 * 2 + 4)
    assert table_bytes(SPEC, "adam", 1, "fp16") == 1000 * (64 * 2 + 2 * 64 * 4)


@pytest.mark.parametrize("tier", ["uvm", "uvm_caching"])
def test_with_a_gpu_all_but_rowwise_state_can_lie_in_host_memory(tier: Tier) -> None:
    for optimizer in OPTIMIZERS:
        assert host_table_bytes(SPEC, optimizer, 2, "fp32", "device") == 0
    assert host_table_bytes(SPEC, "rowwise_adagrad", 2, "fp16", tier) == 500 * 64 * 2
    assert host_table_bytes(SPEC, "adagrad", 2, "fp16", tier) == 500 * (64 * 2 + 64 * 4)
    assert host_table_bytes(SPEC, "sgd", 2, "fp32", tier) == 500 * 64 * 4


def test_a_worker_with_a_gpu_holds_its_copy_and_what_lies_in_host_memory() -> None:
    shard = 500 * 64 * 2

    def host(tier: Tier, low_memory: bool) -> int:
        return worker_bytes(
            [SPEC], "sgd", 2, 2**20, exact_output=True, low_memory=low_memory, weights="fp16",
            tier=tier,
        )  # fmt: skip

    assert host("device", True) == PROCESS_BYTES
    assert host("device", False) == PROCESS_BYTES + shard
    assert host("uvm", True) == PROCESS_BYTES + shard
    assert host("uvm_caching", False) == PROCESS_BYTES + 2 * shard


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_known(optimizer: str) -> None:
    assert table_bytes(SPEC, optimizer, 2) >= 500 * 64 * 4


def needed(specs: list[TableSpec], optimizer: str, workers: int, block: int, **how: bool) -> int:
    how = {"exact_output": True, "low_memory": False} | how
    return worker_bytes(specs, optimizer, workers, block, **how)


def test_more_workers_need_less_each() -> None:
    found = [needed([SPEC], "adagrad", workers, 2**20) for workers in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4
    assert found[-1] > PROCESS_BYTES + 3 * 2**20


def test_every_table_and_the_logits_count() -> None:
    one = needed([SPEC], "sgd", 2, 0)
    two = needed([SPEC, TableSpec("u", 10, 64)], "sgd", 2, 0)
    assert two - one == 2 * 5 * 64 * 4  # held, and written while saving
    assert needed([SPEC], "sgd", 2, 10) - one == 30


def test_what_is_not_copied_does_not_count() -> None:
    shard = 500 * 64 * 4
    everything = needed([SPEC], "sgd", 2, 0)
    assert everything == PROCESS_BYTES + 5 * shard
    assert needed([SPEC], "sgd", 2, 0, exact_output=False) == everything - 3 * shard
    assert needed([SPEC], "sgd", 2, 0, low_memory=True) == everything - shard


def test_available_memory_is_a_part_of_the_machine() -> None:
    line = next(s for s in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in s)
    assert 2**20 < available_bytes() < int(line.split()[1]) * 1024


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 1000 * 1024),
        ({"memory.max": "max\n", "memory.current": "7"}, 1000 * 1024),
        (
            {"memory.max": "500000\n", "memory.current": "300000\n",
             "memory.stat": "anon 1\ninactive_file 50000\n"},
            250_000,
        ),
        ({"memory.max": "900000000\n", "memory.current": "1", "memory.stat": ""}, 1000 * 1024),
        (
            {"memory/memory.limit_in_bytes": "4000\n", "memory/memory.usage_in_bytes": "5000\n",
             "memory/memory.stat": "total_inactive_file 1500\n"},
            500,
        ),
    ],
)  # fmt: skip
def test_a_containers_limit_counts(tmp_path: Path, files: dict[str, str], available: int) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert available_bytes(tmp_path) == available

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_embed.embedding.memory import (
    CUDA_PROCESS_BYTES,
    PROCESS_BYTES,
    READING_BYTES,
    WRITING_BYTES,
    OutputNeeds,
    Replicated,
    Saving,
    beside_tables_bytes,
    host_memory,
    host_table_bytes,
    inference_bytes,
    loading_in_place_bytes,
    logits_block_bytes,
    output_memory,
    table_bytes,
    tokenizer_bytes,
)
from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.settings import Tier, Weights
from dist_embed.embedding.tables import OPTIMIZERS
from dist_embed.parallel.machine import available_bytes, machine_bytes, usable_cores


def held_bytes(*given: Any, **how: Any) -> int:
    return sum(host_memory(*given, **how).values())


SPEC = TableSpec("t", 1000, 64)
BLOCK = 4 * 500 * 32  # of 32 tokens, on two workers
EXACT, SAMPLED = OutputNeeds(SPEC, True, BLOCK), OutputNeeds(SPEC, False, BLOCK)


def automatic(rows: int, workers: int = 1, gib: float | None = 80, exact: bool = True) -> int:
    memory = None if gib is None else int(gib * 2**30)
    return logits_block_bytes("auto", rows, workers, exact=exact, device_bytes=memory)


def test_blocks_of_their_own_accord() -> None:
    least = 256 * 2**20  # of tiles of 8,192 tokens by 8,192 rows
    assert {automatic(rows, gib=None) for rows in (1, 10**7)} == {8 * 2**20}
    # 2,048 tokens against all own rows, or as many as a sixteenth of the memory holds.
    assert automatic(256_000) == 4 * 2048 * 256_000
    assert automatic(512_000, 2) == 4 * 2048 * 256_000
    assert automatic(1_000_000) == 4 * 1_000_000 * (5 * 2**30 // 4_000_000)
    # Small shards have larger blocks; ones that would hold less than 1,024 tokens go by tiles.
    assert automatic(5_000) == least
    assert automatic(1_310_000) == 4 * 1_310_000 * 1024
    assert automatic(1_320_000) == automatic(20_000_000) == least
    assert automatic(256_000, gib=4) == automatic(256_000, exact=False) == least


def test_a_gpu_goes_by_blocks_of_more_tokens() -> None:
    """Narrow products by blocks copy the rows, those by tiles do not."""
    for device, tokens in (("cpu", 32), ("cuda", 1024)):
        for more, copied in ((0, 2 * SHARD // 4), (-1, 0)):
            output = replace(
                EXACT, block_bytes=4 * 500 * tokens + more, narrow_products=True, device=device
            )
            blocks = {"cpu": 1.5, "cuda": 3}[device] * output.block_bytes
            expected = SHARD + int(blocks) + copied
            assert beside_tables_bytes(output, 2) == expected


@pytest.mark.parametrize(
    ("optimizer", "values_per_row"),
    [("sgd", 64), ("rowwise_adagrad", 65), ("adagrad", 128), ("adam", 192)],
)
def test_a_row_costs_its_values_and_its_optimizer_state(
    optimizer: str, values_per_row: int
) -> None:
    assert table_bytes(SPEC, optimizer, 1) == 1000 * values_per_row * 4
    assert table_bytes(SPEC, optimizer, 3) == 334 * values_per_row * 4


def test_rows_are_counted_with_what_pads_them() -> None:
    for width, physical in ((49, 52), (52, 52), (1, 4)):
        spec = TableSpec("t", 1000, width)
        assert table_bytes(spec, "rowwise_adagrad", 1) == 1000 * (4 * physical + 4)
        assert table_bytes(spec, "adagrad", 1) == 1000 * 8 * physical
        in_place = loading_in_place_bytes([spec, SPEC], "adagrad", 2, "fp32", None)
        assert in_place == (500 * 4 * physical if width < physical else 0)


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

    def host(tier: Tier, saving: Saving) -> int:
        return held_bytes(
            [SPEC], "sgd", 2, EXACT, Replicated(), saving=saving, weights="fp16", tier=tier
        ) - READING_BYTES["local"] - CUDA_PROCESS_BYTES  # fmt: skip

    assert host("device", "in_place") == shard  # the rows are loaded through the host's memory
    assert host("device", "behind") == shard
    assert host("uvm", "in_place") == 2 * shard
    assert host("uvm_caching", "waiting") == 2 * shard


@pytest.mark.parametrize("tier", ["device", "uvm", "uvm_caching"])
@pytest.mark.parametrize(
    ("optimizer", "weights", "values"),
    [("sgd", "fp16", 64 * 2), ("rowwise_adagrad", "fp16", 64 * 2), ("adagrad", "fp16", 64 * 4),
     ("adam", "fp16", 64 * 4), ("rowwise_adagrad", "fp32", 64 * 4)],
)  # fmt: skip
def test_a_load_in_place_takes_the_largest_tensor_where_there_is_a_gpu(
    tier: Tier, optimizer: str, weights: Weights, values: int
) -> None:
    specs = [TableSpec("small", 30, 64), SPEC, TableSpec("narrow", 1000, 4)]
    assert loading_in_place_bytes(specs, optimizer, 2, weights, tier) == 500 * values
    assert loading_in_place_bytes(specs, optimizer, 2, weights, None) == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_known(optimizer: str) -> None:
    assert table_bytes(SPEC, optimizer, 2) >= 500 * 64 * 4


SHARD = 500 * 64 * 4
TOLD = PROCESS_BYTES + READING_BYTES["local"]


def needed(
    specs: list[TableSpec], optimizer: str, workers: int, output: OutputNeeds, **how: Any
) -> int:
    how = {"saving": "behind", "replicated": Replicated(), **how}
    return held_bytes(specs, optimizer, workers, output, **how) - TOLD


@pytest.mark.parametrize(
    ("workers", "narrow", "block_bytes", "expected"),
    [
        # Hidden states, their gradient, what comes back and its sum; numbers of a block.
        (2, False, BLOCK, 6400 * (4 + 8 + 2) + 16 * 2 * 32),
        (2, True, BLOCK, 6400 * (2 + 8 + 2) + 16 * 2 * 32),
        # By tiles the numbers of all tokens come before the gradient.
        (2, False, BLOCK - 1, 6400 * (4 + 8 + 2)),
        (500, False, 4 * 2 * 31, 6400 * 4 + 16 * 500 * 100),
        # Alone nothing is sent: the decoder's hidden states, and their gradient.
        (1, False, BLOCK, 6400 * 4),
        (1, True, BLOCK, 6400 * (2 + 4)),
    ],
)  # fmt: skip
def test_the_exact_output_holds_tokens_of_all_workers(
    workers: int, narrow: bool, block_bytes: int, expected: int
) -> None:
    output = replace(EXACT, tokens=100, narrow_products=narrow, block_bytes=block_bytes)
    assert output_memory(output, workers)["tokens of all workers"] == expected
    assert "tokens of all workers" not in output_memory(output, workers, training=False)


def test_more_workers_need_less_each() -> None:
    found = [needed([SPEC], "adagrad", workers, EXACT) for workers in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


def test_every_table_counts_and_the_output_layer_only_for_its_own() -> None:
    large = TableSpec("large", 10**6, 64)
    one = needed([SPEC], "sgd", 2, EXACT)
    assert needed([SPEC, large], "sgd", 2, EXACT) - one == 2 * 500_000 * 64 * 4


@pytest.mark.parametrize(
    ("output", "saving", "expected"),
    [
        # Tables, their copy, the gradient, a block of logits.
        (EXACT, "behind", 3 * SHARD + BLOCK),
        (EXACT, "waiting", 2 * SHARD + BLOCK),
        (EXACT, "in_place", 2 * SHARD + BLOCK),
        (replace(EXACT, trained=False), "in_place", SHARD + BLOCK),
        (SAMPLED, "behind", 2 * SHARD + BLOCK),
        (SAMPLED, "in_place", SHARD + BLOCK),
        # A block holds 32 tokens, or 31: with narrow products only the first copies the rows.
        (replace(EXACT, narrow_products=True), "in_place", 2.5 * SHARD + 1.5 * BLOCK),
        (replace(EXACT, narrow_products=True, block_bytes=BLOCK - 1), "in_place",
         2 * SHARD + int(1.5 * (BLOCK - 1))),
        # Counts of words while the sampler is built, the sampler afterwards; loading.
        (replace(SAMPLED, sampler_words=100_000), "in_place", SHARD + 26 * 100_000),
        (replace(SAMPLED, sampler_words=100_000), "behind", 2 * SHARD + 26 * 100_000),
        (replace(SAMPLED, sampler_words=1), "in_place", SHARD + BLOCK + 8),
        (replace(SAMPLED, share_words=1), "in_place", SHARD + BLOCK + 2),
        (replace(SAMPLED, sampler_words=100_000, share_words=100_000), "in_place",
         SHARD + (8 + 26) * 100_000),
        (replace(SAMPLED, negatives=70), "in_place", SHARD + BLOCK + 10 * 4 * 64 * 70),
        (replace(SAMPLED, block_bytes=1), "waiting", 2 * SHARD),
    ],
)  # fmt: skip
def test_the_most_that_is_held_at_once(
    output: OutputNeeds, saving: Saving, expected: float
) -> None:
    assert needed([SPEC], "sgd", 2, output, saving=saving) == expected


@pytest.mark.parametrize(
    ("saving", "copies"), [("behind", 7), ("waiting", 6), ("in_place", 4)]
)  # fmt: skip
@pytest.mark.parametrize("workers", [1, 2])
def test_what_every_worker_holds_whole(saving: Saving, copies: int, workers: int) -> None:
    """Each parameter with two moments and, in a step, its gradient; the copy has no gradient."""
    whole = Replicated(words=10_000, parameters=50_000_000)
    found = needed([SPEC], "sgd", workers, SAMPLED, saving=saving, replicated=whole)
    without = needed([SPEC], "sgd", workers, SAMPLED, saving=saving)
    rest = found - without - 340 * 10_000 - 4 * 50_000_000 * copies
    # While it loads, the dense model has no gradient, and a step's blocks are not there.
    assert abs(rest) <= 2 * SHARD + 3 * BLOCK


def test_a_tokenizer_takes_more_for_its_first_words() -> None:
    assert tokenizer_bytes(1000) == 340_000
    assert tokenizer_bytes(350_001) - tokenizer_bytes(350_000) == 230
    assert tokenizer_bytes(0, pieces=1000) == 1_140_000


def test_with_a_gpu_the_dense_model_is_there_and_its_copy_here() -> None:
    def host(saving: Saving, **how: Any) -> int:
        return needed([SPEC], "sgd", 2, SAMPLED, saving=saving, tier="device", **how)

    whole = Replicated(words=10_000, parameters=50_000)
    assert host("in_place", replicated=whole) - host("in_place") == 340 * 10_000
    assert host("behind", replicated=whole) - host("behind") == 340 * 10_000 + 12 * 50_000


def test_at_a_store_chunks_on_their_way_count() -> None:
    at_store = needed([SPEC], "sgd", 2, EXACT, store="remote") - READING_BYTES["remote"]
    local = needed([SPEC], "sgd", 2, EXACT) - READING_BYTES["local"]
    assert at_store - local == WRITING_BYTES["remote"]


def test_a_step_on_a_gpu_copies_rows_that_lie_in_host_memory_where_it_goes_by_blocks() -> None:
    assert beside_tables_bytes(EXACT, 2) == SHARD + BLOCK
    assert beside_tables_bytes(EXACT, 2, copied=True) == 2 * SHARD + BLOCK
    assert beside_tables_bytes(SAMPLED, 2, copied=True) == BLOCK
    assert beside_tables_bytes(EXACT, 2, training=False, copied=True) == BLOCK


@pytest.mark.parametrize(
    ("tier", "in_place", "expected"),
    [(None, True, SHARD + BLOCK), (None, False, 2 * SHARD), ("device", True, SHARD),
     ("device", False, SHARD), ("uvm", True, 2 * SHARD), ("uvm_caching", False, 2 * SHARD)],
)  # fmt: skip
def test_who_only_reads_holds_no_state(tier: Tier | None, in_place: bool, expected: int) -> None:
    block = BLOCK if in_place else 1
    process = PROCESS_BYTES if tier is None else CUDA_PROCESS_BYTES
    found = inference_bytes([SPEC], 2, block, Replicated(), in_place=in_place, tier=tier)
    assert found == process + READING_BYTES["local"] + expected
    whole = Replicated(words=1000, parameters=500_000)
    with_more = inference_bytes([SPEC], 2, block, whole, in_place=in_place, tier=tier) - found
    assert with_more == 340 * 1000 + 2_000_000 * ((tier is None) + (not in_place))


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


@pytest.mark.parametrize(("limit", "there"), [("500000", 500_000), ("max", 9000 * 1024)])
def test_a_containers_memory_is_its_limit(tmp_path: Path, limit: str, there: int) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n")
    for name, text in {"memory.max": limit, "memory.current": "7", "memory.stat": ""}.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert machine_bytes(tmp_path) == there


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 7),
        ({"cpu.max": "max 100000\n"}, 7),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 7),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 7),
    ],
)
def test_a_containers_quota_of_processor_time_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert usable_cores(tmp_path) == cores

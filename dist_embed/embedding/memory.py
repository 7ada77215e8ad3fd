"""How much memory a worker needs, before it is started."""

from __future__ import annotations

from pathlib import Path

from dist_embed.embedding.plan import TableSpec, Tier, Weights, shard_of

# A worker process with torch, torchrec and fbgemm loaded, and some for activations. A whole run
# with a table of 146 rows peaked at 0.46 GiB ("peak memory of worker 0" at the end of `train`).
PROCESS_BYTES = 768 * 2**20
GIB = 2**30

# Values of optimizer state per row of width D.
_STATE_VALUES = {
    "rowwise_adagrad": lambda width: 1,
    "adagrad": lambda width: width,
    "sgd": lambda width: 0,
    "adam": lambda width: 2 * width,
}
# Bytes of a value of a row; the optimizer's state is float32 whatever the rows are.
_VALUE_BYTES: dict[Weights, int] = {"fp32": 4, "fp16": 2}


def table_bytes(
    spec: TableSpec, optimizer: str, num_workers: int, weights: Weights = "fp32"
) -> int:
    """Bytes of one worker's shard of a table with its optimizer's state."""
    per_row = _VALUE_BYTES[weights] * spec.width + 4 * _STATE_VALUES[optimizer](spec.width)
    return per_row * shard_of(spec.num_rows, 0, num_workers).physical_rows


def host_table_bytes(
    spec: TableSpec, optimizer: str, num_workers: int, weights: Weights, tier: Tier
) -> int:
    """What of `table_bytes` lies in host memory where the worker has a GPU.

    FBGEMM keeps a state of one value per row on the device in every tier.
    """
    if tier == "device":
        return 0
    whole = table_bytes(spec, optimizer, num_workers, weights)
    if _STATE_VALUES[optimizer](spec.width) != 1:
        return whole
    return whole - 4 * shard_of(spec.num_rows, 0, num_workers).physical_rows


def beside_tables_bytes(
    specs: list[TableSpec], num_workers: int, logits_block_bytes: int, *, exact_output: bool
) -> int:
    """Bytes that a training step needs beside the tables, as far as they can be foretold.

    Three blocks of logits; for the exact output layer the looked-up copy of its shard with its
    gradient, float32 (the largest table's size, as an upper bound).
    """
    largest = max(4 * spec.width * -(-spec.num_rows // num_workers) for spec in specs)
    return 3 * logits_block_bytes + (3 * largest if exact_output else 0)


def worker_bytes(
    specs: list[TableSpec],
    optimizer: str,
    num_workers: int,
    logits_block_bytes: int,
    *,
    exact_output: bool,
    low_memory: bool,
    weights: Weights = "fp32",
    tier: Tier | None = None,
) -> int:
    """Estimate of the host memory of one worker: on the CPU, or with a GPU and ``tier``.

    Process, tables with state and what a step needs beside them, where they are in host memory;
    and but for ``low_memory`` the copy of the shard through which checkpoints are saved and loaded.
    """
    whole = sum(table_bytes(spec, optimizer, num_workers, weights) for spec in specs)
    needed = PROCESS_BYTES + (0 if low_memory else whole)
    if tier is None:
        step = beside_tables_bytes(
            specs, num_workers, logits_block_bytes, exact_output=exact_output
        )
        return needed + whole + step
    return needed + sum(
        host_table_bytes(spec, optimizer, num_workers, weights, tier) for spec in specs
    )


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that new processes can use here: what Linux estimates for the machine, or what is
    left of this container's limit, whichever is less.
    """
    with (root / "proc/meminfo").open() as file:
        machine = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    return min([machine * 1024, *_left_of_limits(root)])


def _left_of_limits(root: Path) -> list[int]:
    """Bytes left of a limit of control groups, version 2 or 1; the files' cache counts as free."""
    group = root / "sys/fs/cgroup"
    left = []
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed = (group / limit).read_text().strip()
            if not allowed.isdigit():  # "max"
                continue
            statistics = ((group / limit).parent / "memory.stat").read_text().splitlines()
            cached = sum(int(line.split()[1]) for line in statistics if line.split()[0] == cache)
            left.append(max(0, int(allowed) - int((group / used).read_text()) + cached))
        except (OSError, ValueError):  # no such group
            continue
    return left

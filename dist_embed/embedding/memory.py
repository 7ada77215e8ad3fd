"""How much memory a worker needs, before it is started."""

from __future__ import annotations

from pathlib import Path

from dist_embed.embedding.tables import TableSpec, shard_of

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


def table_bytes(spec: TableSpec, optimizer: str, num_workers: int) -> int:
    """Bytes of one worker's shard of a table with its optimizer's state, float32."""
    values_per_row = spec.width + _STATE_VALUES[optimizer](spec.width)
    return 4 * values_per_row * shard_of(spec.num_rows, 0, num_workers).physical_rows


def worker_bytes(
    specs: list[TableSpec],
    optimizer: str,
    num_workers: int,
    logits_block_bytes: int,
    *,
    exact_output: bool,
    low_memory: bool,
) -> int:
    """Estimate of one worker's memory.

    Process, tables with state, three blocks of logits; for the exact output layer the looked-up
    copy of its shard with its gradient (the largest table's size, as an upper bound); and but for
    ``low_memory`` the copy of the shard through which checkpoints are saved and loaded.
    """
    tables = sum(table_bytes(spec, optimizer, num_workers) for spec in specs)
    largest = max(4 * spec.width * -(-spec.num_rows // num_workers) for spec in specs)
    needed = PROCESS_BYTES + tables + 3 * logits_block_bytes
    if exact_output:
        needed += 3 * largest
    return needed if low_memory else needed + tables


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

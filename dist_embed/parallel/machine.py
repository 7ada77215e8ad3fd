"""What this process may use of its machine, or of the container that it runs in. Free of torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that we may run on, or as many whole ones as a container's quota of processor time is
    worth: with more threads than these all of them are stopped for a part of each period.
    """
    group = root / "sys/fs/cgroup"
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no such group; "max": no limit
        quota, period = (group / "cpu.max").read_text().split()
        cores = min(cores, int(quota) // int(period))
    with suppress(OSError, ValueError):  # the same in version 1, where -1 is no limit
        quota, period = (
            (group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        cores = min(cores, int(quota) // int(period)) if int(quota) > 0 else cores
    return max(1, cores)


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that new processes can use here: what Linux estimates for the machine, or what is
    left of this container's limit, whichever is less.
    """
    with (root / "proc/meminfo").open() as file:
        machine = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    return min([machine * 1024, *_left_of_limits(root)])


def machine_bytes(root: Path = Path("/")) -> int:
    """Memory of this machine, or of this container, whichever is less, whoever uses it."""
    with (root / "proc/meminfo").open() as file:
        machine = next(int(line.split()[1]) for line in file if line.startswith("MemTotal:"))
    return min([machine * 1024, *(allowed for allowed, _ in _limits(root))])


def _left_of_limits(root: Path) -> list[int]:
    """Bytes left of each of `_limits`."""
    return [max(0, allowed - used) for allowed, used in _limits(root)]


def _limits(root: Path) -> list[tuple[int, int]]:
    """Limits of control groups, version 2 or 1, and what is used of each, in bytes; the files'
    cache counts as free.
    """
    group = root / "sys/fs/cgroup"
    limits = []
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
            limits.append((int(allowed), int((group / used).read_text()) - cached))
        except (OSError, ValueError):  # no such group
            continue
    return limits

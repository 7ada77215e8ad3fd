"""Choosing where the tables' rows lie: on the device, or in host memory with a cache on the device.

What follows from sizes alone is in `dist_embed.embedding.tier_sizes`; `find_tier` asks the devices
and agrees with the other workers.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.settings import Exchange, Memory, Tier, Weights
from dist_embed.embedding.tier_sizes import (
    cache_share,
    check_cpu_memory,
    check_device_memory,
    check_host_memory,
    choose_tier,
    room_for_tables,
    sizes_of,
)
from dist_embed.parallel.collectives import least_over_workers
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.parallel.machine import available_bytes


def find_tier(
    wanted: Memory,
    specs: list[TableSpec],
    optimizer: str,
    weights: Weights,
    step_bytes: int,
    group: Group,
    trained_whole: Collection[str] = (),
    *,
    configured: bool = False,
) -> tuple[Tier, float]:
    """The tier that all workers use, and with ``uvm_caching`` `cache_share`; else 0.

    ``step_bytes`` is what a step needs of a device beside the tables; ``trained_whole``: see
    `dist_embed.embedding.tables.build_sharded_tables`; ``configured``: how messages name settings.
    Collective.

    Raises:
        UserError: on every worker, where the rows or a step fit neither way.
    """
    sizes = sizes_of(specs, optimizer, group.num_workers, weights, trained_whole)
    if group.device.type != "cuda":
        with all_or_none(group):  # machines differ
            here = group.num_local_workers
            check_cpu_memory(sizes, here, available_bytes(), configured=configured)
        return choose_tier(wanted, sizes, None), 0.0
    free = least_over_workers(free_bytes(group.device), group)
    check_device_memory(sizes, step_bytes, free, configured=configured)
    room = room_for_tables(free, step_bytes)
    tier = choose_tier(wanted, sizes, room, configured=configured)
    with all_or_none(group):
        if tier != "device":
            check_host_memory(
                sizes.in_host, group.num_local_workers, available_bytes(), configured=configured
            )
    return tier, cache_share(sizes, room) if tier == "uvm_caching" else 0.0


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device, with what PyTorch holds of it without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)


def tier_line(wanted: Memory, tier: Tier, weights: Weights, exchange: Exchange, device: str) -> str:
    """One line for the user: where the rows lie, and in which types they are held and sent."""
    place = {
        "device": "on the GPU" if device == "cuda" else "in host memory",
        "uvm": "in host memory, read by the GPU",
        "uvm_caching": "in host memory with a cache on the GPU",
    }[tier]
    chosen = " (chosen by embedding.memory=auto)" if wanted == "auto" and device == "cuda" else ""
    rounding = " rounded stochastically" if weights != "fp32" else ""
    return f"tables: {place}{chosen}, rows in {weights}{rounding}, exchanged in {exchange}"

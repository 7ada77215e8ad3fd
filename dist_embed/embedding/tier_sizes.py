"""What of the tables lies where, from sizes alone: tiers, and whether memory suffices.

Free of torch: who plans a run asks. Messages name settings by whole keys to those who have
``configured`` a run, to others by the arguments of `ShardedTables`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dist_embed.embedding.memory import GIB, host_table_bytes, table_bytes
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.settings import Memory, Tier, Weights
from dist_embed.errors import UserError

# Of a device's memory beside what can be foretold. The rest is for the dense model, activations,
# the exchange, and what allocators leave unused: a choice, not a measurement.
TABLES_SHARE = 0.8
# Of the rows, that a cache holds where there is room: FBGEMM's choice.
CACHED_SHARE = 0.2
# What FBGEMM 1.8.0 keeps beside each cached row: its number and when it was used, int64, and where
# it prefetches a count of its users, int32.
CACHED_ROW_BYTES = 8 + 8 + 4
# PyTorch takes memory by segments of up to 20 MiB; FBGEMM counts them whole.
_SEGMENTS = 64 * 2**20


@dataclass(frozen=True)
class Sizes:
    """Bytes of one worker's shards of all tables, with the optimizer's state.

    Attributes:
        whole: all of it.
        in_host: what of it lies in host memory in the tiers ``uvm`` and ``uvm_caching``.
        bookkeeping: what the device holds beside it in the tier ``uvm_caching``, without the cache;
            0 where no table can have one.
        cacheable: the rows of tables that can have one, all of them in caches.
    """

    whole: int
    in_host: int
    bookkeeping: int
    cacheable: int

    @property
    def least_with_a_cache(self) -> int:
        """What a device holds in the tier ``uvm_caching`` before its caches have a row."""
        return self.whole - self.in_host + self.bookkeeping


def sizes_of(
    specs: list[TableSpec],
    optimizer: str,
    num_workers: int,
    weights: Weights,
    trained_whole: Collection[str] = (),
) -> Sizes:
    """The sizes of every worker's shards. Tables that are ``trained_whole`` never have a cache."""
    cached = [spec for spec in specs if spec.name not in trained_whole]
    rows = sum(shard_of(spec.num_rows, 0, num_workers).physical_rows for spec in cached)
    return Sizes(
        whole=sum(table_bytes(spec, optimizer, num_workers, weights) for spec in specs),
        in_host=sum(
            host_table_bytes(spec, optimizer, num_workers, weights, "uvm") for spec in specs
        ),
        # FBGEMM's cache_index_table_map, int32, for each row.
        bookkeeping=4 * rows + _SEGMENTS if cached else 0,
        cacheable=sum(table_bytes(spec, "sgd", num_workers, weights) for spec in cached)
        + CACHED_ROW_BYTES * rows,
    )


def room_for_tables(free_bytes: int, step_bytes: int) -> int:
    """Bytes of a device that tables may take, of ``free_bytes`` less what a step needs."""
    return max(0, int(TABLES_SHARE * (free_bytes - step_bytes)))


def choose_tier(
    wanted: Memory, sizes: Sizes, room_bytes: int | None, *, configured: bool = False
) -> Tier:
    """The tier that is used.

    Args:
        wanted: as the user has it.
        sizes: of a worker's shards.
        room_bytes: what tables may take of the fullest device; None on the CPU, where rows lie in
            host memory in any case.
        configured: how messages name settings.

    Raises:
        UserError: a cache is needed and there is no room for any.
    """
    if wanted != "auto":
        tier: Tier = wanted
    elif room_bytes is None or sizes.whole <= room_bytes:
        tier = "device"
    else:
        tier = "uvm_caching"
    if tier == "uvm_caching" and not sizes.bookkeeping:
        tier = "uvm"
    if tier == "uvm_caching" and room_bytes is not None:
        least = sizes.least_with_a_cache
        if least >= room_bytes:
            workers, width, memory = _names(configured)
            raise UserError(
                f"{memory}: {wanted!r} is not possible here: a cache needs more than "
                f"{least / GIB:.2f} GiB of every GPU for its tables, and the fullest has room for "
                f"{room_bytes / GIB:.2f} GiB beside the training step. Use {workers}, a smaller "
                f"{width}, or {memory}=uvm (or device, where this estimate is too careful)"
                f"{_also(configured)}"
            )
    return tier


def _names(configured: bool) -> tuple[str, str, str]:
    """What is said of more workers, of the width and of where rows lie."""
    if configured:
        return "more workers (cluster.num_workers)", "embedding.width", "embedding.memory"
    return "more workers", "width", "memory"


def _also(configured: bool) -> str:
    """What makes a step smaller beside its tables."""
    more = "; also model.output=sampled or a smaller model.logits_block_mib"
    return more if configured else ""


def cache_share(sizes: Sizes, room_bytes: int) -> float:
    """Of the rows of tables with a cache, how many each cache holds.

    FBGEMM would size the caches in turn, each from what is left, and tables with learning rates of
    their own have one each.
    """
    return min(CACHED_SHARE, (room_bytes - sizes.least_with_a_cache) / sizes.cacheable)


def check_device_memory(
    sizes: Sizes, step_bytes: int, free: int, *, configured: bool = False
) -> None:
    """Raise UserError where the device cannot hold what it holds in every tier: what a step needs
    beside the tables, and the optimizer's state that cannot lie elsewhere.
    """
    least = step_bytes + sizes.whole - sizes.in_host
    if least > free:
        workers, width, _ = _names(configured)
        raise UserError(
            f"{least / GIB:.2f} GiB of every GPU are needed beside the rows, wherever these lie, "
            f"and the fullest has {free / GIB:.2f} GiB free. Use {workers} or a smaller {width}"
            f"{_also(configured)}"
        )


def check_host_memory(
    in_host: int, workers_here: int, available: int, *, configured: bool = False
) -> None:
    """Raise UserError where this machine's memory cannot hold its workers' shards."""
    if workers_here * in_host > available:
        _, width, _ = _names(configured)
        raise UserError(
            f"the tables need {workers_here * in_host / GIB:.1f} GiB of host memory here "
            f"({in_host / GIB:.2f} GiB for each of {workers_here} workers), and "
            f"{available / GIB:.1f} GiB are available. Use more machines, fewer rows, a smaller "
            f"{width}, or {'embedding.' if configured else ''}weights=fp16"
        )


def check_cpu_memory(
    sizes: Sizes, workers_here: int, available: int, *, configured: bool = False
) -> None:
    """Raise UserError where this machine's memory cannot hold its workers' shards, without GPUs."""
    if workers_here * sizes.whole > available:
        _, width, _ = _names(configured)
        raise UserError(
            f"tables: their rows and the optimizer's state need "
            f"{workers_here * sizes.whole / GIB:.1f} GiB of memory here ({sizes.whole / GIB:.2f} "
            f"GiB for each of {workers_here} workers), and {available / GIB:.1f} GiB are available"
            f". Use more machines, fewer rows or a smaller {width}"
        )

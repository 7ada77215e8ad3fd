"""Which rows of a table each worker holds, and how they are kept and sent.

A table is split by rows into contiguous, equally long shards, one per worker. Row-wise shards of
TorchRec have ``ceil(rows / workers)`` rows, which can leave the last worker with none; FBGEMM's CPU
kernel crashes on an empty shard. The physical table is therefore padded to a multiple of the number
of workers. Padding rows are never looked up, trained, saved or counted.

FBGEMM's kernels take rows of a multiple of four values. Those of another width have up to three
zeros behind them (docs/decisions/0053-any-width.md), which nobody but the kernels sees.

Nothing here imports TorchRec, which takes seconds: the launching process uses it too.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_embed.embedding.row_order import RowOrder

_WIDTH_STEP = 4


@dataclass(frozen=True)
class TableSpec:
    """One logical table: V = ``num_rows`` rows of D = ``width`` values."""

    name: str
    num_rows: int
    width: int

    @property
    def physical_width(self) -> int:
        """D with padding."""
        return -(-self.width // _WIDTH_STEP) * _WIDTH_STEP

    @property
    def order(self) -> RowOrder:
        """The bijection between ids and rows."""
        return RowOrder(self.num_rows)


@dataclass(frozen=True)
class Shard:
    """The rows of one table that one worker holds: ``[first_row, first_row + num_rows)``."""

    first_row: int
    num_rows: int
    physical_rows: int  # with padding; the same on every worker, at least 1

    @property
    def end_row(self) -> int:
        """One past the last row."""
        return self.first_row + self.num_rows


def shard_of(num_rows: int, rank: int, num_workers: int) -> Shard:
    """The shard of worker ``rank`` of a table with ``num_rows`` logical rows; may hold no row."""
    physical = -(-num_rows // num_workers)
    first = min(rank * physical, num_rows)
    return Shard(first, min(physical, num_rows - first), physical)


def bags_of_a_table(device_type: str, num_workers: int) -> int:
    """Into how many bags each worker cuts what it wants of each table; the same on all workers.

    An owner has ``num_workers`` times as many, of which FBGEMM's kernels allow 2²⁶, and 2³¹ over
    all tables. See `embedding.bags`.
    """
    return max(1024, 8192 // num_workers) if device_type == "cuda" else 1

"""Initial table rows that depend on (seed, table, row) alone, never on the number of workers."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Rows are drawn in blocks, each from a generator of its own, so that a shard draws only what it
# holds (and at most two partial blocks more). Changing this changes every fresh run's start.
BLOCK_ROWS = 1024


def _block_seed(seed: int, table: str, block: int) -> int:
    digest = hashlib.sha256(f"{seed}/{table}/{block}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch seeds are signed 64-bit


def fill_initial_rows(out: Tensor, *, seed: int, table: str, first_row: int, scale: float) -> None:
    """Fill ``out`` [R, D] with the initial values of rows ``first_row`` to ``first_row + R``.

    Values are normal with mean 0 and standard deviation ``scale``. They are drawn on the CPU, so a
    CUDA table starts with the same values as a CPU table. Not collective.
    """
    num_rows, width = out.shape
    row = first_row
    while row < first_row + num_rows:
        block, offset = divmod(row, BLOCK_ROWS)
        generator = torch.Generator().manual_seed(_block_seed(seed, table, block))
        values = torch.randn(BLOCK_ROWS, width, generator=generator)
        take = min(BLOCK_ROWS - offset, first_row + num_rows - row)
        out[row - first_row : row - first_row + take].copy_(values[offset : offset + take] * scale)
        row += take

"""Initial table rows that depend on (seed, table, row) alone, never on the number of workers.

A row's bits are what Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
makes of counters that are the row's own, with a key of seed and table. NumPy promises that its
Philox stays as it is. docs/decisions/0027-initial-values.md has what else was looked at.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A counter gives 256 bits, a value takes 16.
VALUES_OF_COUNTER = 16
# Drawn at once, in about 1 MiB. What rows hold does not depend on it.
_VALUES_AT_ONCE = 2**16


def fill_initial_rows(out: Tensor, *, seed: int, table: str, first_row: int, scale: float) -> None:
    """Fill ``out`` [R, D] with the initial values of rows ``first_row`` to ``first_row + R``.

    Values are normal with mean 0 and standard deviation ``scale``. They are drawn on the CPU, so a
    CUDA table starts with the same values as a CPU table; with ``scale`` 0 they are zeros, and none
    is drawn. Not collective. Changing this changes every fresh run's start.
    """
    if not scale:
        out.zero_()
        return
    num_rows, width = out.shape
    half = -(-width // 2)
    counters = -(-width // VALUES_OF_COUNTER)  # of a row, which shares none with another
    bits = np.random.Philox(key=_key(seed, table), counter=first_row * counters)
    quantiles = _normal_quantiles() * np.float32(scale / 2**0.5)
    at_once = max(1, _VALUES_AT_ONCE // (counters * VALUES_OF_COUNTER))
    for start in range(0, num_rows, at_once):
        part = out[start : start + at_once]
        words = bits.random_raw(len(part) * counters * 4).astype("<u8", copy=False)
        drawn = quantiles.take(words.view("<u2"), mode="wrap")  # wrap: none is out of range
        a, b = torch.from_numpy(drawn).view(len(part), 2, -1).unbind(1)
        # Sum and difference of two independent normal values are two of them again. Unlike the
        # quantiles they are not few, and reach to 6 deviations instead of 4.
        values = torch.empty(len(part), 2, half)
        torch.add(a[:, :half], b[:, :half], out=values[:, 0])
        torch.sub(a[:, :half], b[:, :half], out=values[:, 1])
        part.copy_(values.view(len(part), 2 * half)[:, :width])


def _key(seed: int, table: str) -> int:
    """128 bits of seed and table."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{table}".encode()).digest()[:16], "little")


@cache
def _normal_quantiles() -> NDArray[np.float32]:
    """The middles of 65,536 equally likely parts of the normal distribution, of variance 1."""
    lower = torch.special.ndtri((torch.arange(2**15, dtype=torch.float64) + 0.5) / 2**16)
    lower /= lower.square().mean().sqrt()
    return torch.cat([lower, -lower.flip(0)]).float().numpy()

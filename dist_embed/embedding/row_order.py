"""Where an id's row lies in a table: a fixed bijection that spreads frequent ids over all shards.

Ids are numbered by frequency, most frequent first. If row i held id i, the first shard would hold
nearly every token of a batch. Multiplying by an integer near ``rows / golden ratio`` (Knuth's
multiplicative hashing, TAOCP vol. 3, 6.4) places any prefix of the ids almost evenly over any
number of contiguous shards, and it can be undone. Nothing here depends on the number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN_FRACTION = 0.6180339887498949
# Of a table: id * multiplier must stay below 2**63.
MOST_ROWS = 2**31 - 1


@dataclass(frozen=True)
class RowOrder:
    """The bijection ``row = (id * multiplier) mod num_rows`` of one table."""

    num_rows: int

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ValueError(f"a table needs at least one row, got num_rows={self.num_rows}")
        if self.num_rows > MOST_ROWS:
            raise ValueError(f"num_rows={self.num_rows} is above the supported 2**31 - 1")

    @cached_property
    def multiplier(self) -> int:
        """The integer coprime to ``num_rows`` that lies nearest to ``num_rows * 0.618``."""
        centre = max(1, round(self.num_rows * GOLDEN_FRACTION))
        for distance in range(self.num_rows + 1):
            for candidate in (centre + distance, centre - distance):
                if candidate >= 1 and math.gcd(candidate, self.num_rows) == 1:
                    return candidate
        raise AssertionError("1 is coprime to every number")

    @cached_property
    def _inverse_multiplier(self) -> int:
        return pow(self.multiplier, -1, self.num_rows) if self.num_rows > 1 else 0

    def rows_of(self, ids: Tensor) -> Tensor:
        """Row numbers of ``ids`` (int64, any shape), same shape."""
        return (ids * self.multiplier) % self.num_rows

    def ids_of(self, rows: Tensor) -> Tensor:
        """Ids stored at ``rows`` (int64, any shape), same shape: the inverse of `rows_of`."""
        return (rows * self._inverse_multiplier) % self.num_rows

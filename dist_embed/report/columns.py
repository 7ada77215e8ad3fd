"""A run's metrics as columns of numbers, and fewer points of them that look the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_embed.run.metrics import is_number

# Of a figure with a number for each worker: the most, and that by the mean of all.
MOST, BALANCE = "/most", "/balance"
WORKERS = "workers"


@dataclass(frozen=True)
class Column:
    """A figure over a run.

    Attributes:
        steps: [n] after which it was noted, ascending.
        values: [n], NaN where it was not finite.
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> NDArray[np.float64]:
        """The values that are."""
        return self.values[np.isfinite(self.values)]


NOTHING = Column(np.empty(0), np.empty(0))


def columns_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
    """Each figure by its name, of the lines that have it. What is no number is left out.

    A list with a number for each worker becomes two columns, NAME with `MOST` and with `BALANCE`;
    how many workers there were is `WORKERS`.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}

    def note(name: str, step: float, value: float) -> None:
        steps, values = found.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)

    for line in lines:
        step, workers = float(line["step"]), 0
        for name, value in line.items():
            if is_number(value):
                note(name, step, value)
            elif value is None:
                note(name, step, math.nan)
            elif type(value) is list and value and all(map(is_number, value)):
                workers, most = max(workers, len(value)), max(value)
                note(f"{name}{MOST}", step, most)
                note(f"{name}{BALANCE}", step, most * len(value) / (sum(value) or math.nan))
        if workers:
            note(WORKERS, step, workers)
    columns = {}
    for name, (steps, values) in found.items():
        numbers = np.array(values, dtype=np.float64)
        numbers[~np.isfinite(numbers)] = math.nan
        columns[name] = Column(np.array(steps), numbers)
    return columns


def thinned(column: Column, most: int) -> Column:
    """The column at the `places_of_extremes`."""
    places = places_of_extremes(column.values, most)
    return Column(column.steps[places], column.values[places])


def places_of_extremes(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """At most so many places, 5 or more: the first, the last and every extreme and gap to be seen.

    Of stretches of equally many values the lowest and the highest are kept, and the first that is
    not finite where there is one, in their order.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    known = np.isfinite(values)
    of_each = 2 if known.all() else 3
    ends = np.linspace(1, count - 1, (most - 2) // of_each + 1).astype(int)
    kept = [0, count - 1]
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        stretch, here = values[begin:end], known[begin:end]
        if here.any():
            kept += [begin + int(np.nanargmin(stretch)), begin + int(np.nanargmax(stretch))]
        if not here.all():
            kept.append(begin + int(np.argmin(here)))
    return np.unique(kept)

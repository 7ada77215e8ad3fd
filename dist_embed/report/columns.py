"""A run's metrics as columns of numbers, and fewer points of them that look the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_embed.run.metrics import LIMIT, is_number

# Of a figure with a number for each worker: the most, and that by the mean of all.
MOST, BALANCE = "/most", "/balance"
WORKERS = "workers"
_AT_ONCE = 500  # lines: figure after figure of more would be read from memory, not from a cache


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


def columns_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Each figure by its name, of the lines that have it. What is no number is left out.

    A list with a number for each worker becomes two columns, NAME with `MOST` and with `BALANCE`;
    how many workers there were is `WORKERS`.
    """
    parts: dict[str, list[Column]] = {}
    for begin in range(0, len(lines), _AT_ONCE):
        for name, column in _part(lines[begin : begin + _AT_ONCE]).items():
            parts.setdefault(name, []).append(column)
    return {
        name: Column(
            np.concatenate([one.steps for one in own]), np.concatenate([one.values for one in own])
        )
        for name, own in parts.items()
    }


def _part(lines: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Of some lines in a row: figure by figure, as looking at each value takes twice as long."""
    steps = np.array([line["step"] for line in lines], np.float64)
    workers, found = np.zeros(len(lines)), dict[str, Column]()

    def note(name: str, places: Sequence[int], values: NDArray[np.float64]) -> None:
        values[~np.isfinite(values)] = math.nan
        found[name] = Column(steps if len(places) == len(steps) else steps[places], values)

    for name in dict.fromkeys(chain.from_iterable(lines)):
        told = {at: line[name] for at, line in enumerate(lines) if name in line}
        if numbers := _sound(told, _are_numbers, lambda value: value is None or is_number(value)):
            note(name, [*numbers], np.array([*numbers.values()], np.float64))
        if len(numbers) == len(told):
            continue
        if lists := _sound(told, _are_lists, lambda value: _are_lists([value])):
            places, counts = [*lists], np.array([*map(len, lists.values())])
            flat = np.fromiter(chain.from_iterable(lists.values()), np.float64)
            flat[~np.isfinite(flat)] = math.nan
            begins = np.cumsum(counts) - counts
            most, sums = np.maximum.reduceat(flat, begins), np.add.reduceat(flat, begins)
            sums[sums == 0] = math.nan
            note(f"{name}{BALANCE}", places, most * counts / sums)
            note(f"{name}{MOST}", places, most)
            workers[places] = np.maximum(workers[places], counts)
    if known := np.flatnonzero(workers).tolist():
        note(WORKERS, known, workers[known])
    return found


def _sound(
    told: dict[int, Any], all_are: Callable[[Sequence[Any]], bool], is_one: Callable[[Any], bool]
) -> dict[int, Any]:
    """Those of the values that are of a kind. Mostly all are, which is quickly said."""
    if all_are([*told.values()]):
        return told
    return {at: value for at, value in told.items() if is_one(value)}


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are, see `is_number`; may be False where only looking at each would tell."""
    kinds = {*map(type, values)}
    if kinds == {float}:
        return True
    return kinds <= {float, int} and min(values) > -LIMIT and max(values) < LIMIT


def _are_lists(values: Sequence[Any]) -> bool:
    """Whether all are lists with numbers alone, and some."""
    if {*map(type, values)} != {list} or not all(values):
        return False
    numbers = [*chain.from_iterable(values)]
    return _are_numbers(numbers) or all(map(is_number, numbers))


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

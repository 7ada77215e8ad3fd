"""How evenly the lookups of a step fall on the shards, with the id → row bijection and without it.

A simulation: as many workers as shards; each draws tokens by Zipf's law and asks for the rows of
its distinct ids, as `ShardedTables` does. Found is what is asked of the fullest shard by
the mean over shards: the step waits for the worker that holds it. Beside it, without any draw, the
same of the *expected* requests: that much lies in the placement, the rest in the chance of a step's
tokens. Not counted are the negatives of the sampled output layer, equal on all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.data.zipf import zipf, zipf_probability
from dist_embed.embedding.plan import shard_of
from dist_embed.embedding.row_order import MOST_ROWS, RowOrder
from dist_embed.errors import UserError
from dist_embed.observe.plot import GREY, INK, label_ends, log_axis, plot_into

# By shards: what max ÷ mean is not to exceed, with 8,192 tokens a worker and 10⁶ rows or more.
AIMS = {2: 1.02, 8: 1.02, 64: 1.1, 1024: 1.4}
_MARKERS = "os^D"  # by size of the table
_BLOCK = 1 << 20  # ids at a time, where all of a table are gone through


@dataclass(frozen=True)
class Balance:
    """Max ÷ mean of the rows asked of each shard.

    Attributes:
        num_rows: V.
        num_shards: as many as workers.
        expected: of the expected requests, with the rows of `RowOrder`.
        bijection: of one step after the other, with the rows of `RowOrder`.
        row_is_id: of the same steps without.
    """

    num_rows: int
    num_shards: int
    expected: float
    bijection: list[float]
    row_is_id: list[float]


def balance_report(
    sizes: Sequence[int], shards: Sequence[int], *, tokens: int, steps: int,
    say: Callable[[str], None],
) -> list[Balance]:  # fmt: skip
    """Measure tables of each of ``sizes`` rows on each number of shards.

    Raises:
        UserError: more rows than a table can have.
    """
    for num_rows in sizes:
        if num_rows > MOST_ROWS:
            raise UserError(f"--rows: {num_rows} is not allowed: at most {MOST_ROWS}")
    found = []
    for num_rows in dict.fromkeys(sizes):
        for num_shards in dict.fromkeys(shards):
            say(f"{num_rows:,} rows on {num_shards:,} shards")
            expected = expected_of_shards(num_rows, num_shards, tokens)
            one = Balance(num_rows, num_shards, _max_by_mean(expected), [], [])
            for seed in range(steps):
                spread, plain = asked_of_shards(num_rows, num_shards, tokens, seed)
                one.bijection.append(_max_by_mean(spread))
                one.row_is_id.append(_max_by_mean(plain))
            found.append(one)
    return found


def asked_of_shards(
    num_rows: int, num_shards: int, tokens: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows asked of each shard by all workers, [W] with the bijection and [W] without.

    Both count the same tokens. Memory is that of one worker's tokens.
    """
    order = RowOrder(num_rows)
    shard_rows = shard_of(num_rows, 0, num_shards).physical_rows
    spread, plain = np.zeros((2, num_shards), np.int64)
    for worker in range(num_shards):
        draw = np.random.default_rng([seed, worker])
        ids = np.unique(zipf(draw, num_rows, tokens)).astype(np.int64)
        rows = order.rows_of(torch.from_numpy(ids)).numpy()
        spread += np.bincount(rows // shard_rows, minlength=num_shards)
        plain += np.bincount(ids // shard_rows, minlength=num_shards)
    return spread, plain


def expected_of_shards(num_rows: int, num_shards: int, tokens: int) -> NDArray[np.float64]:
    """Rows that one worker is expected to ask of each shard, with the bijection: [W].

    It asks for id i unless none of its tokens is i: with probability 1 - (1 - p(i))^tokens.
    """
    order = RowOrder(num_rows)
    shard_rows = shard_of(num_rows, 0, num_shards).physical_rows
    expected = np.zeros(num_shards)
    for first in range(0, num_rows, _BLOCK):
        ids = np.arange(first, min(first + _BLOCK, num_rows))
        with np.errstate(divide="ignore"):  # a table of one row: p = 1
            asked = -np.expm1(tokens * np.log1p(-zipf_probability(ids, num_rows)))
        rows = order.rows_of(torch.from_numpy(ids)).numpy()
        expected += np.bincount(rows // shard_rows, weights=asked, minlength=num_shards)
    return expected


def _max_by_mean(asked: NDArray[np.int64] | NDArray[np.float64]) -> float:
    return float(asked.max() / asked.mean())


def balance_table(found: Sequence[Balance]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = [
        "rows", "shards", "aim", "bijection: expected", "mean step", "worst step",
        "row = id: mean step", "worst step",
    ]  # fmt: skip
    rows = [
        [f"{one.num_rows:,}", f"{one.num_shards:,}",
         f"{AIMS[one.num_shards]:g}" if one.num_shards in AIMS else "",
         f"{one.expected:.3f}", f"{mean(one.bijection):.3f}", f"{max(one.bijection):.3f}",
         f"{mean(one.row_is_id):.2f}", f"{max(one.row_is_id):.2f}"]
        for one in found
    ]  # fmt: skip
    return header, rows


def balance_figures(found: Sequence[Balance], tokens: int) -> dict[str, Any]:
    """For a JSON file."""
    return {"tokens": tokens, "max_by_mean": [asdict(one) for one in found]}


def plot_balance(found: Sequence[Balance], path: str) -> None:
    """Draw the worst steps by the number of shards, and the aims, into an SVG or PNG file."""
    shards = sorted({one.num_shards for one in found})
    sizes = sorted({one.num_rows for one in found})
    aims = [number for number in shards if number in AIMS]
    with plot_into(path) as axes:
        log_axis(axes, "x", shards)
        log_axis(axes, "y")
        axes.plot(aims, [AIMS[n] for n in aims], "_", color=INK, markersize=18, markeredgewidth=0.6)
        ends = []
        for place, size in enumerate(sizes):
            of_size = sorted((o for o in found if o.num_rows == size), key=lambda o: o.num_shards)
            marker = _MARKERS[place % len(_MARKERS)]
            for name, color, worst in (
                ("bijection", INK, [max(one.bijection) for one in of_size]),
                ("row = id", GREY, [max(one.row_is_id) for one in of_size]),
            ):
                axes.plot(
                    [one.num_shards for one in of_size], worst,
                    marker=marker, color=color, markerfacecolor="white",
                )  # fmt: skip
                ends.append((worst[-1], f"{name}, {size:,} rows: {worst[-1]:.3g}"))
        if shards[-1] in AIMS:
            ends.append((AIMS[shards[-1]], f"thin marks: aims, {AIMS[shards[-1]]:g} here"))
        axes.set_ylim(bottom=0.8)
        axes.set_xlabel("shards (as many as workers)")
        axes.set_title("Rows asked of the fullest shard ÷ mean over shards, worst step")
        label_ends(axes, shards[-1], ends)

"""Charts of figures over steps, with a line for each run and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from dist_embed.observe.plot import alone, log_axis, short_number
from dist_embed.report.chart import Chart, Table, look
from dist_embed.report.columns import Column, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 600  # of a line: more than a chart is wide, in pixels
TABLE_ROWS = 60  # of a run
_MARKED = 40  # points; more would be a bar of marks
_FAR = 4  # times the lowest


def line_chart(
    name: str,
    title: str,
    unit: str,
    figures: Mapping[str, Mapping[str, Column]],
    *,
    logarithmic: bool = False,
    note: str = "",
) -> Chart | None:
    """A line for each figure that there is; None where there is none at all.

    Args:
        name: see `Chart`.
        title: see `Chart`.
        unit: of all figures.
        figures: by run, by their labels. The first of a run is drawn strongly, others are thin.
        logarithmic: whether the axis of the figures is.
        note: what else there is to be said.
    """
    drawn = {
        run: {label: column for label, column in columns.items() if len(column.finite)}
        for run, columns in figures.items()
    }
    if not any(drawn.values()):
        return None
    labels = list(dict.fromkeys(label for columns in figures.values() for label in columns))
    known = np.concatenate([c.finite for columns in drawn.values() for c in columns.values()])
    logarithmic = logarithmic and bool((known > 0).any())

    def draw(axes: Axes) -> None:
        for number, columns in enumerate(drawn.values()):
            for label, column in columns.items():
                points, strong, own = thinned(column, POINTS), label == labels[0], look(number)
                values = points.values
                if logarithmic:
                    values = np.where(values > 0, values, math.nan)
                if not strong or len(points) > _MARKED:
                    own |= {"markevery": alone(values.tolist())}
                if not strong:
                    own |= {"linewidth": 0.7, "alpha": 0.75, "markersize": 3}
                axes.plot(points.steps, values, **own)
        of_steps(axes)
        axes.set_ylabel(unit)
        shown = known[known > 0] if logarithmic else known
        ends = [float(shown.min()), float(shown.max())]
        scale_axis(axes, "y", ends, logarithmic=logarithmic)

    lines = f"Strong: {labels[0]}; thin: {' and '.join(labels[1:])}." if labels[1:] else ""
    return Chart(
        name, title, " ".join(filter(None, (lines, note))), draw, _table(labels, drawn),
        list(drawn),
    )  # fmt: skip


def of_steps(axes: Axes) -> None:
    """Name the axis of steps, and write its numbers shortly."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    short_numbers(axes, "x")


def scale_axis(
    axes: Axes, name: Literal["x", "y"], values: Sequence[float], *, logarithmic: bool = True
) -> None:
    """Short numbers on an axis, and a logarithmic scale where that is asked for and ``values``, all
    above 0, lie far apart. Below a ten-thousandth of the highest nothing is shown.
    """
    from matplotlib.ticker import LogLocator

    lowest, highest = min(values), max(values)
    if not logarithmic or lowest <= 0 or highest < _FAR * lowest:
        short_numbers(axes, name)
        return
    log_axis(axes, name)
    lowest = max(lowest, highest / 1e4)
    axis, limits = (axes.xaxis, axes.set_xlim) if name == "x" else (axes.yaxis, axes.set_ylim)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1,)))
    limits(lowest / 1.2, highest * 1.2)


def short_numbers(axes: Axes, name: Literal["x", "y"]) -> None:
    """See `short_number`."""
    from matplotlib.ticker import FuncFormatter

    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def number(value: float) -> str:
    """For a table; nothing for what is not known."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(labels: Sequence[str], drawn: Mapping[str, Mapping[str, Column]]) -> Table:
    rows, left_out = [], False
    for run, columns in drawn.items():
        of = {
            label: dict(zip(column.steps.tolist(), column.values.tolist(), strict=True))
            for label, column in columns.items()
        }
        thin = [thinned(column, TABLE_ROWS).steps.tolist() for column in columns.values()]
        steps = sorted({step for some in thin for step in some})
        left_out |= len(steps) < len({step for known in of.values() for step in known})
        for step in steps:
            figures = [number(of.get(label, {}).get(step, math.nan)) for label in labels]
            rows.append([run, f"{step:,.0f}", *figures])
    note = "Some of the steps, extremes among them; metrics.jsonl has all that it told."
    return Table(["run", "step", *labels], rows, note if left_out else "")

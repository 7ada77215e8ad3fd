"""Charts of where the time of steps goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dist_embed.observe.phase_names import PHASES, metric_of
from dist_embed.report.chart import COLORS, HEIGHT, Chart, Table, look
from dist_embed.report.columns import places_of_extremes
from dist_embed.report.lines import POINTS, TABLE_ROWS, number, of_steps
from dist_embed.report.runs import RunFigures
from dist_embed.run.history import OUTSIDE, REST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.17  # inches of a bar
# Over time: all phases would be more than colours can tell apart.
GROUPS = {
    "forward": ("encoder", "decoder", "output"),
    "backward": ("dense backward",),
    "rows: asked for, sent, updated": ("ids exchange", "lookup", "table backward"),
    "norms, optimizer": ("gradient norm", "optimizer"),
    "data, agreement, checkpoints": ("data wait", *OUTSIDE),
    REST: (REST,),
}


def bars_of_phases(
    name: str,
    phases: dict[str, dict[str, float]],
    title: str = "Where a step's time goes",
    note: str = "",
) -> Chart | None:
    """Bars of milliseconds a step, for each phase one of each run; None where none has any.

    Args:
        name: see `Chart`.
        phases: by run, see `phases_of`.
        title: see `Chart`.
        note: what else there is to be said.
    """
    phases = {run: of for run, of in phases.items() if of}
    if not phases:
        return None
    names = list(dict.fromkeys(phase for of in phases.values() for phase in of))

    def draw(axes: Axes) -> None:
        thick = 0.8 / len(phases)
        for place, of in enumerate(phases.values()):
            heights = [row + (place - (len(phases) - 1) / 2) * thick for row in range(len(names))]
            own = look(place)
            bars = axes.barh(
                heights, [1e3 * of.get(phase, 0.0) for phase in names], thick,
                # More than there are colours for: as lines are, by dashes.
                color=own["color"] if place < len(COLORS) else "none",
                edgecolor=own["color"], linestyle=own["linestyle"], linewidth=0.8,
            )  # fmt: skip
            if len(phases) == 1:
                total = sum(of.values())
                shares = [f"{of.get(phase, 0.0) / total:.0%}" for phase in names]
                axes.bar_label(bars, shares, padding=2, size=8)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.12, y=0.01)
        axes.set_xlabel("milliseconds a step, mean")

    rows = [
        [phase, *(number(1e3 * of.get(phase, 0.0)) for of in phases.values()),
         *(f"{of.get(phase, 0.0) / sum(of.values()):.1%}" for of in phases.values())]
        for phase in names
    ]  # fmt: skip
    header = ["phase", *(f"{run}: ms" for run in phases), *(f"{run}: share" for run in phases)]
    height = max(HEIGHT, 0.6 + _ROW * len(names) * max(1.0, 0.6 * len(phases)))
    said = f"Of worker 0; docs/operating.md says what each phase is. {note}".rstrip()
    return Chart(
        name, title, said, draw,
        Table(header, rows), list(phases), height,
    )  # fmt: skip


def phases_over_time(run: RunFigures, name: str) -> Chart | None:
    """How a step's time changes over a run; None where it has no phases."""
    steps, groups = _groups(run)
    if len(steps) < 2:
        return None
    sums = np.nansum(list(groups.values()), axis=0)
    places = places_of_extremes(sums, POINTS // 2)

    def draw(axes: Axes) -> None:
        axes.stackplot(
            steps[places], *(1e3 * values[places] for values in groups.values()),
            colors=COLORS, edgecolor="#ffffff", linewidth=0.4,
        )  # fmt: skip
        axes.margins(x=0)
        of_steps(axes)
        axes.set_ylabel("milliseconds a step")

    shown = places_of_extremes(sums, TABLE_ROWS)
    rows = [
        [f"{steps[at]:,.0f}", *(number(1e3 * values[at]) for values in groups.values())]
        for at in shown.tolist()
    ]
    table = Table(["step", *(f"{group}: ms" for group in groups)], rows)
    return Chart(
        name, f"A step's time over the run {run.name}", "Of worker 0.", draw, table, list(groups),
    )  # fmt: skip


def _groups(run: RunFigures) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The steps of log lines with phases, and seconds a step of each group that took any."""
    columns = {
        name: run.columns[metric_of(name)] for name in PHASES if metric_of(name) in run.columns
    }
    lengths = {len(column) for column in columns.values()}
    log = run.column("step_seconds")
    if len(lengths) != 1:
        return np.empty(0), {}
    steps = next(iter(columns.values())).steps
    logged = np.isin(log.steps, steps)
    made = run.column("steps").values
    made = made if len(made) == len(steps) else np.diff(steps, prepend=0.0)
    seconds: dict[str, NDArray[np.float64]] = {
        phase: np.nan_to_num(column.values) / made for phase, column in columns.items()
    }
    within = [values for phase, values in seconds.items() if phase not in OUTSIDE]
    if logged.sum() == len(steps):
        seconds[REST] = np.maximum(0, log.values[logged] - np.sum(within, axis=0))
    groups = {
        group: np.sum([seconds.get(phase, np.zeros(len(steps))) for phase in names], axis=0)
        for group, names in GROUPS.items()
    }
    return steps, {group: values for group, values in groups.items() if values.any()}

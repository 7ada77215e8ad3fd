"""Plots of a study of scaling: what was measured with the ideal line, and what is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dist_embed.observe.plot import GREY, INK, alone, label_ends, log_axis, plot_into
from dist_embed.study.schema import ScalingStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
_MARKERS = ("o", "s", "^", "D", "v")


def draw_scaling(study: ScalingStudy, rows: Sequence[Row], path: str) -> bool:
    """Tokens a second over the first factor that has numbers: measured, and planned in grey.

    Over workers with what would be ideal. Open marks: more threads than cores. Returns whether
    there was anything to draw. Raises UserError for a file that cannot be drawn.
    """
    numbers = [f.name for f in study.factors if len(f.levels) > 1 and f.levels[0].x is not None]
    along = next(iter(numbers), None)
    done = [row for row in rows if row.get("tokens_per_second")]
    if along is None or not done:
        return False
    with plot_into(path) as axes:
        _log_axes(axes, sorted({float(row["levels"][along]) for row in done}))
        ends: list[tuple[float, str]] = []
        last = max(float(row["levels"][along]) for row in done)
        for number, (name, own) in enumerate(_lines(study, done, along).items()):
            x = [float(row["levels"][along]) for row in own]
            marker = _MARKERS[number % len(_MARKERS)]
            measured = [row["tokens_per_second"] for row in own]
            planned = [row["planned_tokens_per_second"] for row in own]
            axes.plot(x, measured, color=INK)
            for row, place, speed in zip(own, x, measured, strict=True):
                inside = "white" if row.get("oversubscribed") else INK
                axes.plot([place], [speed], color=INK, marker=marker, markerfacecolor=inside)
            axes.plot(x, planned, color=GREY, linestyle=":", marker=".", markevery=alone(planned))
            if along == "workers":
                _ideal(axes, x, measured[0])
            ends += [(measured[-1], name)] if x[-1] == last else []
        axes.set_xlabel(along)
        with_plan = any(row["planned_tokens_per_second"] for row in done)
        said = ["target tokens/s" + ("; grey: planned" if with_plan else "")]
        said += ["dashed: ideal"] if along == "workers" else []
        if any(row.get("oversubscribed") for row in done):
            said.append("open: more threads than cores")
        axes.set_title(", ".join(said))
        label_ends(axes, last, ends)
    return True


def draw_simulated(study: ScalingStudy, rows: Sequence[Row], path: str) -> bool:
    """Tokens a second that are simulated, of sizes that fit. Returns whether there are any.

    Raises UserError for a file that cannot be drawn.
    """
    fitting = [row for row in rows if row["planned_fits"] is not False]
    if not fitting:
        return False
    assert study.simulate is not None
    with plot_into(path) as axes:
        _log_axes(axes, sorted({float(row["workers"]) for row in fitting}))
        ends = []
        for number, (name, own) in enumerate(_lines(study, fitting, "workers").items()):
            x = [float(row["workers"]) for row in own]
            y = [row["planned_tokens_per_second"] for row in own]
            axes.plot(x, y, color=INK, marker=_MARKERS[number % len(_MARKERS)],
                      markerfacecolor="none")  # fmt: skip
            _ideal(axes, x, y[0])
            ends.append((y[-1], f"{name}, simulated" if name else "simulated"))
        axes.set_xlabel("workers")
        axes.set_title(
            "SIMULATED, not measured: target tokens/s; dashed: ideal"
            + ("; what does not fit is left out" if len(fitting) < len(rows) else "")
            + f"\nfrom the figures of the machine file {study.simulate.machine}:"
            + f"\n{fitting[0]['planned_source']}"
        )
        label_ends(axes, max(float(row["workers"]) for row in fitting), ends)
    return True


def _log_axes(axes: Axes, places: Sequence[float]) -> None:
    log_axis(axes, "x", places)
    log_axis(axes, "y")


def _ideal(axes: Axes, x: Sequence[float], first: float) -> None:
    """As many times as fast as there are workers."""
    axes.plot(x, [first * place / x[0] for place in x], color=GREY, linestyle="--", linewidth=0.6)


def _lines(study: ScalingStudy, rows: Sequence[Row], along: str) -> dict[str, list[Row]]:
    """Rows by what is alike but for ``along``, in its order; seeds are lines of their own."""
    others = [f.name for f in study.factors if f.name != along and len(f.levels) > 1]
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["levels"][along])):
        name = ", ".join(row["levels"][name] if name in ("scaling", "output")
                         else f"{name} {row['levels'][name]}" for name in others)  # fmt: skip
        seed = row.get("seed")
        name += f", seed {seed}" if len(study.seeds) > 1 and seed is not None else ""
        found.setdefault(name, []).append(row)
    return found

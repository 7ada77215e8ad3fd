"""The charts of a study: how runs scale, and what was expected of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dist_embed.observe.plot import GREY, alone, log_axis
from dist_embed.report.chart import COLORS, HEIGHT, Chart, Table, height_of_rows, look, name_rows
from dist_embed.report.lines import number, scale_axis
from dist_embed.report.step_time import GROUPS
from dist_embed.report.studies import Row, StudyFigures, label_of
from dist_embed.run.history import REST
from dist_embed.study.schema import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figure = Callable[[Row], float | None]
# Factors of a study that have numbers: what their axis says, and the column of the results.
_ALONG = {
    "workers": ("workers", "workers"),
    "vocabulary": ("words of the target vocabulary", "target_words"),
    "width": ("width of vectors", "table_width"),
    "batch": ("tokens a step", "batch_tokens"),
}
_PLANNED = "Thin: as planned."
_PHASES = ("phases", "planned_phases")
_SHARED = "Open marks: more threads than cores."
# What is drawn over each factor: name, title, unit, as measured, as planned.
_FIGURES: tuple[tuple[str, str, str, Figure, Figure], ...] = (
    ("speed", "Throughput", "target tokens/s",
     lambda row: row["tokens_per_second"], lambda row: row["planned_tokens_per_second"]),
    ("step", "Step time", "milliseconds a step, median",
     lambda row: _times(1e3, row["step_seconds_p50"]),
     lambda row: _times(1e3, row["planned_step_seconds"])),
    ("memory", "Memory of the fullest worker", "GiB",
     lambda row: _times(2**-30, max(row["memory_bytes"] or [math.nan])),
     lambda row: _times(2**-30, row["planned_memory_bytes"])),
)  # fmt: skip


def study_charts(study: StudyFigures) -> list[Chart]:
    """All for which there is something to draw."""
    charts = [
        *(_over(study.done, along, figure) for along in _ALONG for figure in _FIGURES),
        _efficiency(study.done),
        _phases(study.done),
        _against_plan(study.done, _FIGURES[1]),
        _against_plan(study.done, _FIGURES[2]),
        _simulated(study),
        *_measures(study.done),
    ]
    return [chart for chart in charts if chart is not None]


def _times(by: float, value: float | None) -> float | None:
    return None if value is None else by * value


def _lines(rows: Sequence[Row], along: str, figure: Figure) -> dict[str, list[Row]]:
    """Rows with the figure by what is alike but for a factor, in its order, where it differs."""
    place, found = _ALONG[along][1], dict[str, list[Row]]()
    for row in rows:
        value = figure(row)
        if along in row["levels"] and row[place] and value is not None and not math.isnan(value):
            found.setdefault(label_of(row, but=(along,)), []).append(row)
    lines = {label: sorted(own, key=lambda row: row[place]) for label, own in found.items()}
    return {label: own for label, own in lines.items() if own[0][place] != own[-1][place]}


def _over(
    rows: Sequence[Row], along: str, drawn: tuple[str, str, str, Figure, Figure]
) -> Chart | None:
    """A figure over a factor, measured and planned; throughput over workers with what is ideal."""
    name, title, unit, measured, planned = drawn
    lines, (said, place) = _lines(rows, along, measured), _ALONG[along]
    if not lines:
        return None
    ideal = along == "workers" and name == "speed"

    def draw(axes: Axes) -> None:
        shown: list[float] = []
        log_axis(axes, "x", sorted({row[place] for own in lines.values() for row in own}))
        for number_of_line, own in enumerate(lines.values()):
            style, x = look(number_of_line), [row[place] for row in own]
            y = [measured(row) or math.nan for row in own]
            expected = [planned(row) or math.nan for row in own]
            shown += y + expected
            axes.plot(x, y, **style | {"marker": ""})
            for row, here in zip(own, y, strict=True):
                own_style = style | ({"markerfacecolor": "none"} if row["oversubscribed"] else {})
                axes.plot([row[place]], [here], **own_style)
            _draw_planned(axes, x, expected, style["color"])
            if ideal:
                shown += _draw_ideal(axes, x, y[0])
        scale_axis(axes, "y", [value for value in shown if not math.isnan(value)])
        axes.set_xlabel(said)
        axes.set_ylabel(unit)

    table = [
        [label, f"{row[place]:,}", _text(measured(row)), _text(planned(row)),
         "yes" if row["oversubscribed"] else ""]
        for label, own in lines.items()
        for row in own
    ]  # fmt: skip
    header = ["runs", said, f"{unit}: measured", "planned", "more threads than cores"]
    notes = [_PLANNED, *(["Dashed: ideal."] if ideal else []),
             *([_SHARED] if any(row[-1] for row in table) else [])]  # fmt: skip
    return Chart(
        f"{name}-{along}", f"{title} over {along}", " ".join(notes), draw, Table(header, table),
        list(lines),
    )  # fmt: skip


def _draw_planned(axes: Axes, x: Sequence[int], y: Sequence[float], color: str) -> None:
    """A thin line; a mark where there is none to draw."""
    axes.plot(x, y, color=color, linewidth=0.7, alpha=0.75, marker=".", markevery=alone(y))


def _draw_ideal(axes: Axes, workers: Sequence[int], first: float) -> list[float]:
    """Throughput that grows as the workers do, from that of the fewest; returns it."""
    ideal = [first * here / workers[0] for here in workers]
    axes.plot(workers, ideal, color=GREY, linestyle="--", linewidth=0.8)
    return ideal


def _efficiency(rows: Sequence[Row]) -> Chart | None:
    """Of what more workers should give, how much they do."""

    def of(row: Row) -> float | None:
        return row["efficiency"]

    lines = _lines(rows, "workers", of)
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        log_axis(axes, "x", sorted({row["workers"] for own in lines.values() for row in own}))
        axes.axhline(1, color=GREY, linestyle="--", linewidth=0.8)
        for place, own in enumerate(lines.values()):
            x = [row["workers"] for row in own]
            axes.plot(x, [of(row) or math.nan for row in own], **look(place))
            planned = [row["planned_efficiency"] or math.nan for row in own]
            _draw_planned(axes, x, planned, look(place)["color"])
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_xlabel("workers")
        axes.set_ylabel("efficiency")

    table = [
        [label, f"{row['workers']:,}", f"{row['batch_tokens']:,}", _text(row["tokens_per_second"]),
         f"{row['efficiency']:.2f}", _text(row["planned_efficiency"]),
         f"{row['efficiency_base']:,}"]
        for label, own in lines.items()
        for row in own
    ]  # fmt: skip
    header = ["runs", "workers", "tokens a step", "target tokens/s", "efficiency", "planned",
              "by that of workers"]  # fmt: skip
    return Chart(
        "efficiency", "Efficiency",
        f"Tokens/s of each core or GPU, by that of the fewest workers measured. {_PLANNED}", draw,
        Table(header, table), list(lines),
    )  # fmt: skip


def _phases(rows: Sequence[Row]) -> Chart | None:
    """Where each run's steps spend their time, beside where the plan has it."""
    shown = [row for row in rows if row["phases"]]
    if not shown:
        return None
    rest = any(REST in row["phases"] for row in shown)
    groups = {group: names for group, names in GROUPS.items() if group != REST or rest}

    def draw(axes: Axes) -> None:
        name_rows(axes, [label_of(row) for row in shown], each=3)
        for at, row in enumerate(shown):
            for below, column in enumerate(_PHASES, start=1):
                end, of = 0.0, row[column] or {}
                for place, names in enumerate(groups.values()):
                    part = 1e3 * sum(of.get(name, 0.0) for name in names)
                    axes.barh(
                        3 * at + below, part, 0.9, left=end, color=COLORS[place],
                        alpha=1 / below,
                    )  # fmt: skip
                    end += part
        axes.set_xlabel("milliseconds a step, mean")

    bars = [(label_of(row), row["phases"]) for row in shown]
    bars += [(f"{label_of(row)}: planned", row["planned_phases"])
             for row in shown if row["planned_phases"]]  # fmt: skip
    names = list(dict.fromkeys(name for _, of in bars for name in of))
    table = [[label, *(_text(_times(1e3, of.get(name))) for name in names)] for label, of in bars]
    return Chart(
        "phases", "Where a step's time goes", "Of worker 0. Pale: as planned.", draw,
        Table(["milliseconds a step", *names], table), list(groups),
        max(HEIGHT, height_of_rows(len(shown), each=3)),
    )  # fmt: skip


def _against_plan(rows: Sequence[Row], drawn: tuple[str, str, str, Figure, Figure]) -> Chart | None:
    """Each run as it was planned and as it was measured."""
    name, title, unit, measured, planned = drawn
    pairs = [
        (label_of(row), expected, found)
        for row in rows
        if (expected := planned(row)) and (found := measured(row)) and not math.isnan(found)
    ]
    if not pairs:
        return None

    def draw(axes: Axes) -> None:
        x, y = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
        ends = [min(x + y) * 0.8, max(x + y) * 1.25]
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=0.8)
        axes.plot(x, y, **look(0) | {"linestyle": ""})
        for name in ("x", "y"):
            scale_axis(axes, name, ends)
        axes.set_xlabel(f"planned, {unit}")
        axes.set_ylabel("measured")

    table = [
        [label, number(expected), number(found), f"{expected / found - 1:+.0%}"]
        for label, expected, found in pairs
    ]
    return Chart(
        f"planned-{name}", f"{title}: planned and measured", "Dashed: as planned.", draw,
        Table(["run", f"planned, {unit}", "measured", "off by"], table),
    )  # fmt: skip


def _simulated(study: StudyFigures) -> Chart | None:
    """Sizes that no run was made of; those that do not fit are in the table alone."""

    def of(row: Row) -> float | None:
        return row["planned_tokens_per_second"]

    known = _lines(study.simulated, "workers", of)
    fitting = {label: [row for row in own if row["planned_fits"] is not False]
               for label, own in known.items()}  # fmt: skip
    lines = {label: own for label, own in fitting.items() if own}
    if not lines:
        return None
    named = {f"{row['planned_machine']} ({row['planned_source']})" for row in study.simulated}
    machines = ", ".join(sorted(named))

    def draw(axes: Axes) -> None:
        shown: list[float] = []
        log_axis(axes, "x", sorted({row["workers"] for own in lines.values() for row in own}))
        for place, own in enumerate(lines.values()):
            x, y = [row["workers"] for row in own], [of(row) or math.nan for row in own]
            axes.plot(x, y, **look(place), markerfacecolor="none")
            shown += y + _draw_ideal(axes, x, y[0])
        if finite := [value for value in shown if not math.isnan(value)]:
            scale_axis(axes, "y", finite)
        axes.set_xlabel("workers")
        axes.set_ylabel("target tokens/s, simulated")

    table = [
        [label, f"{row['workers']:,}", _fits(row),
         f"{row['batch_tokens'] / row['workers']:,.0f}" + (" (uneven)" if row["uneven"] else ""),
         _text(of(row)), _text(row["planned_efficiency"]),
         _text(_times(1e3, row["planned_step_seconds"])),
         _text(_times(2**-20, row["planned_exchange_bytes"])), _text(row["planned_served_balance"]),
         _text(row["planned_checkpoint_seconds"]), row["planned_bottleneck"] or ""]
        for label, own in known.items()
        for row in own
    ]  # fmt: skip
    header = ["sizes", "workers", "fits", "tokens a step and worker", "target tokens/s",
              "efficiency", "ms a step", "MiB sent a step", "asked of the fullest shard ÷ mean",
              "s a checkpoint",
              "bottleneck"]  # fmt: skip
    return Chart(
        "simulated", "SIMULATED: throughput over workers",
        f"Not measured: from the figures of the machine {machines}. Dashed: ideal. What does not "
        "fit is in the table alone.", draw, Table(header, table), list(lines),
    )  # fmt: skip


def _fits(row: Row) -> str:
    if row["planned_refused"]:
        return "refused"
    return "no" if row["planned_fits"] is False else "yes"


def _measures(rows: Sequence[Row]) -> list[Chart]:
    """Of a comparison: each measure, a mark for each run."""
    names = dict.fromkeys(name for row in rows for name in row["measures"] or {})
    return [chart for name in names if (chart := _measure(rows, name))]


def _measure(rows: Sequence[Row], name: str) -> Chart | None:
    found: dict[str, dict[int | None, float]] = {}
    for row in rows:
        value = (row["measures"] or {}).get(name)
        if value is not None and math.isfinite(value):
            levels = ", ".join(row["levels"].values())
            found.setdefault(levels, {})[row["seed"]] = value
    if not found:
        return None
    title = MEASURES[name][0] if name in MEASURES else name.replace("_", " ")

    def draw(axes: Axes) -> None:
        for at, by_seed in enumerate(found.values()):
            marks = look(0) | {"linestyle": "", "alpha": 0.7}
            axes.plot([*by_seed.values()], [2 * at + 1] * len(by_seed), **marks)
        name_rows(axes, list(found))
        axes.set_xlabel(title)

    table = [
        [levels, "" if seed is None else f"{seed}", number(value)]
        for levels, by_seed in found.items()
        for seed, value in by_seed.items()
    ]
    return Chart(
        f"measure-{name.replace('_', '-')}", title[:1].upper() + title[1:],
        "A mark for each seed.", draw,
        Table(["run", "seed", title], table), height=height_of_rows(len(found)),
    )  # fmt: skip


def _text(value: float | None) -> str:
    return "" if value is None else number(value)

"""The charts of runs, in the order of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dist_embed.observe.plot import alone
from dist_embed.optim.schedule import Schedule
from dist_embed.report.chart import Chart, Table, height_of_rows, look, name_rows
from dist_embed.report.columns import BALANCE, MOST, Column, thinned
from dist_embed.report.lines import POINTS, line_chart, number, short_numbers
from dist_embed.report.runs import RunFigures, moment
from dist_embed.report.step_time import bars_of_phases, phases_over_time
from dist_embed.training.rates import rates_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB = 2.0**30


def run_charts(runs: Sequence[RunFigures]) -> list[Chart]:
    """All for which there is something to draw."""

    def columns(**names: str) -> dict[str, dict[str, Column]]:
        return {
            run.name: {label.replace("_", " "): run.column(name) for label, name in names.items()}
            for run in runs
        }

    charts = [
        line_chart(
            "loss", "Loss", "nats a target token",
            columns(validation="validation_loss", training="nll"),
        ),
        line_chart(
            "bleu", "Quality of translations", "BLEU, chrF",
            columns(BLEU="validation_bleu", chrF="validation_chrf"),
            note="Of the validation set.",
        ),
        _learning_rates(runs),
        line_chart(
            "speed", "Throughput", "target tokens/s", columns(throughput="tokens_per_second"),
            note="Of all workers together, without validations and saving.",
        ),
        _phases(runs),
        *(phases_over_time(run, f"phases-{place}") for place, run in enumerate(runs, start=1)),
        line_chart(
            "memory", "Memory", "GiB", _memory(runs),
            note="Of the worker that has held most, the most until then.",
        ),
        line_chart(
            "balance", "Balance of workers", "most ÷ mean",
            columns(
                own_time=f"workers/own_seconds{BALANCE}",
                rows_requested=f"workers/rows_requested{BALANCE}",
            ),
            note="1 is even. Own time: without waiting for other workers.",
        ),
        line_chart(
            "gradient", "Norm of the gradient", "norm", columns(norm="gradient_norm"),
            note="Of one step in each line of metrics, before clipping.", logarithmic=True,
        ),
        _time_line(runs),
        _coverage(runs),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _phases(runs: Sequence[RunFigures]) -> Chart | None:
    """As runs have recorded them, each beside its plan where that was asked for."""
    bars: dict[str, dict[str, float]] = {}
    machines = dict.fromkeys(run.planned.machine for run in runs if run.planned)
    for run in runs:
        bars[run.name] = run.phases
        if run.planned and run.phases:
            bars[f"{run.name}, planned"] = run.planned.seconds
    note = f"Planned for {', '.join(machines)}." if machines else ""
    return bars_of_phases("phases", bars, note=note)


def _memory(runs: Sequence[RunFigures]) -> dict[str, dict[str, Column]]:
    found = {run.name: run.column(f"workers/memory_bytes{MOST}") for run in runs}
    return {name: {"memory": Column(of.steps, of.values / _GIB)} for name, of in found.items()}


def _learning_rates(runs: Sequence[RunFigures]) -> Chart | None:
    """As runs have told them. Earlier versions did not: of their steps what the configuration says
    now, which a run that goes on may have changed.
    """
    figures: dict[str, dict[str, Column]] = {}
    notes = ["Tables with a rate of their own have another peak."]
    for run in runs:
        rates, logged = rates_of(run.config), run.column("step_seconds").steps
        untold = logged[~np.isin(logged, run.column("learning_rate").steps)]
        until = int(untold[-1]) if len(untold) else 0
        steps = _up_to(until, [rates.dense.warmup_steps, rates.tables.warmup_steps])
        figures[run.name] = {
            "dense part": _rate(rates.dense, steps, run.column("learning_rate")),
            "tables": _rate(rates.tables, steps, run.column("table_learning_rate")),
        }
        if until:
            notes.append(f"{run.name} up to step {until:,}: as the configuration says now.")
    return line_chart(
        "rate", "Learning rate", "rate", figures, logarithmic=True, note=" ".join(notes)
    )


def _up_to(until: int, peaks: Sequence[int]) -> NDArray[np.float64]:
    """Steps that show a rate, with its peaks."""
    around = [peak + by for peak in peaks for by in (-1, 0, 1)]
    steps = np.unique([*np.linspace(1, until, POINTS).round(), *around])
    return steps[(steps >= 1) & (steps <= until)]


def _rate(schedule: Schedule, steps: NDArray[np.float64], told: Column) -> Column:
    """As scheduled at some steps, behind them as told."""
    after = told.steps > max(steps, default=0)
    scheduled = [schedule.rate(int(step)) for step in steps]
    return Column(
        np.concatenate([steps, told.steps[after]]), np.concatenate([scheduled, told.values[after]])
    )


def _time_line(runs: Sequence[RunFigures]) -> Chart | None:
    """Steps over hours, with the checkpoints that are there."""
    drawn = {run.name: (run, run.column("time")) for run in runs if len(run.column("time").finite)}
    if not drawn:
        return None

    longest = max(times.finite[-1] - times.finite[0] for _, times in drawn.values())
    unit, seconds = ("hours", 3600) if longest > 2 * 3600 else ("minutes", 60)

    def draw(axes: Axes) -> None:
        for place, (run, times) in enumerate(drawn.values()):
            line, own = thinned(times, POINTS), look(place)
            began = times.finite[0]
            axes.plot(
                (line.values - began) / seconds, line.steps,
                **own | {"marker": ".", "markevery": alone(line.values.tolist())},
            )  # fmt: skip
            saved = [one for one in run.checkpoints if one.time >= began]
            axes.plot(
                [(one.time - began) / seconds for one in saved], [one.step for one in saved],
                **own | {"linestyle": "", "markersize": 6},
            )  # fmt: skip
        axes.set_xlabel(f"{unit} since its first line of metrics")
        axes.set_ylabel("step")
        short_numbers(axes, "y")

    rows = []
    for name, (run, times) in drawn.items():
        rows += [
            [name, f"{what} line of metrics", f"{times.steps[at]:,.0f}", moment(times.values[at])]
            for what, at in (("first", 0), ("last", -1))
        ]
        rows += [
            [name, "checkpoint", f"{one.step:,}", moment(one.time),
             f"{one.size_bytes / 2**20:,.1f}", "" if one.loss is None else f"{one.loss:.4f}"]
            for one in run.checkpoints
        ]  # fmt: skip
    return Chart(
        "time", "Time line and checkpoints",
        "Marks: complete checkpoints that are there. Level stretches: validation, pauses.", draw,
        Table(["run", "what", "step", "time", "MiB", "validation loss"], rows), list(drawn),
    )  # fmt: skip


def _coverage(runs: Sequence[RunFigures]) -> Chart | None:
    """What tables have taken of files of vectors."""
    found = [(f"{run.name}: {one.table}", one) for run in runs for one in run.coverages]
    if not found:
        return None

    def shares(composed: bool) -> list[float]:
        words = [one.composed_tokens if composed else one.found_tokens for _, one in found]
        return [
            100 * part / max(1, one.tokens) for part, (_, one) in zip(words, found, strict=True)
        ]

    def draw(axes: Axes) -> None:
        rows = [2 * at + 1 for at in range(len(found))]
        axes.barh(rows, shares(False), 0.9, color=look(0)["color"])
        axes.barh(rows, shares(True), 0.9, left=shares(False), color=look(1)["color"])
        name_rows(axes, [name for name, _ in found])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of running words")

    rows = [
        [name, one.uri, f"{one.words:,}", f"{sum(one.found_words.values()):,}",
         f"{one.composed_words:,}", number(before), number(parts),
         ", ".join(f"{word} ({count:,})" for word, count in one.missing)]
        for (name, one), before, parts in zip(found, shares(False), shares(True), strict=True)
    ]  # fmt: skip
    header = ["table", "file", "words", "found", "from parts", "% of running words found",
              "% from parts", "most frequent without a vector"]  # fmt: skip
    return Chart(
        "coverage", "Vectors that tables start from", "Of the words of the training data.", draw,
        Table(header, rows), ["in the file", "from their parts"], height_of_rows(len(found)),
    )  # fmt: skip

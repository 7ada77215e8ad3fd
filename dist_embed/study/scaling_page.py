"""The page of a study of scaling: what was measured beside what was planned, and what is
simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from dist_embed.observe.phase_names import PHASES
from dist_embed.run.history import REST
from dist_embed.study.measured import balance
from dist_embed.study.outcome import Outcome
from dist_embed.study.report import made_on, not_made, set_up_of
from dist_embed.study.results import NO_TEXT, have_no_text
from dist_embed.study.scaling import plan_of, what_breaks
from dist_embed.study.schema import ScalingStudy

Row = dict[str, Any]
_MIB = 2**20
# A column's head, and its text; none where a row lacks it.
_Columns = tuple[tuple[str, Callable[[Row], str | None]], ...]


def _figure(name: str, form: str, scale: float = 1.0) -> Callable[[Row], str | None]:
    def text(row: Row) -> str | None:
        return None if row.get(name) is None else form.format(row[name] * scale)

    return text


def _by_base(name: str) -> Callable[[Row], str | None]:
    """An efficiency, marked where it is the one that others are by."""

    def text(row: Row) -> str | None:
        if row.get(name) is None:
            return None
        return f"{row[name]:.0%}" + (" (base)" if row["workers"] == row["efficiency_base"] else "")

    return text


def _efficiency(row: Row) -> str | None:
    return "more workers than cores" if row.get("oversubscribed") else _by_base("efficiency")(row)


def _rows(row: Row) -> str | None:
    rows = row.get("rows_requested")
    return f"{mean(rows):,.0f} (most ÷ mean {balance(rows):.2f})" if rows else None


def _memory(row: Row) -> str | None:
    return f"{max(row['memory_bytes']) / _MIB:,.0f}" if row.get("memory_bytes") else None


def _against(row: Row) -> str | None:
    measured, planned = row.get("step_seconds_p50"), row.get("planned_step_seconds")
    return f"{planned / measured - 1:+.0%}" if measured and planned else None


def _memory_against(row: Row) -> str | None:
    planned = row.get("planned_memory_bytes")
    if not row.get("memory_bytes") or not planned:
        return None
    return f"{planned / max(row['memory_bytes']) - 1:+.0%}"


def _planned_memory(row: Row) -> str:
    lacks = "refused" if row["planned_refused"] else "does not fit"
    told = f" ({lacks})" if row["planned_fits"] is False else ""
    return f"{row['planned_memory_bytes'] / 2**30:,.2f}{told}"


def _tokens(row: Row) -> str:
    return f"{row['batch_tokens'] / row['workers']:,.0f}" + (" (uneven)" if row["uneven"] else "")


def _negatives(row: Row) -> str | None:
    negatives = plan_of(row).negatives
    return f"{negatives:,}" if negatives else None


def _checkpoint(row: Row) -> str:
    one = plan_of(row).checkpoint
    return f"{one.seconds:,.1f} ({one.bytes / one.seconds / 1e9:,.0f})"


def _bottleneck(row: Row) -> str | None:
    return row.get("planned_bottleneck")


_SPEED: _Columns = (
    ("target tokens/s", _figure("tokens_per_second", "{:,.0f}")),
    ("efficiency", _efficiency),
    ("step, ms: median", _figure("step_seconds_p50", "{:,.1f}", 1e3)),
    ("p10", _figure("step_seconds_p10", "{:,.1f}", 1e3)),
    ("p90", _figure("step_seconds_p90", "{:,.1f}", 1e3)),
    ("waiting for data", _figure("data_wait_share", "{:.1%}")),
    ("exchange", _figure("exchange_share", "{:.1%}")),
    ("distinct rows a step", _rows),
    ("memory, MiB", _memory),
    ("training loss", _figure("training_loss", "{:.3f}")),
    ("validation loss", _figure("validation_loss", "{:.3f}")),
    ("validation BLEU", _figure("validation_bleu", "{:.1f}")),
)
_PLANNED: _Columns = (
    ("step, ms: measured", _figure("step_seconds_p50", "{:,.1f}", 1e3)),
    ("planned", _figure("planned_step_seconds", "{:,.1f}", 1e3)),
    ("off by", _against),
    ("memory, MiB: measured", _memory),
    ("planned", _figure("planned_memory_bytes", "{:,.0f}", 1 / _MIB)),
    ("off by", _memory_against),
    ("bottleneck by the plan", _bottleneck),
)
_SIMULATED: _Columns = (
    ("target tokens/s", _figure("planned_tokens_per_second", "{:,.0f}")),
    ("tokens a step and worker", _tokens),
    ("negatives a step", _negatives),
    ("efficiency", _by_base("planned_efficiency")),
    ("step, ms", _figure("planned_step_seconds", "{:,.1f}", 1e3)),
    ("sent by a worker, MB a step", _figure("planned_exchange_bytes", "{:,.1f}", 1e-6)),
    ("asked of the fullest shard ÷ mean", _figure("planned_served_balance", "{:.2f}")),
    ("memory, GiB", _planned_memory),
    ("checkpoint, s (GB/s of all nodes)", _checkpoint),
    ("bottleneck", _bottleneck),
)


def scaling_page(
    study: ScalingStudy,
    outcomes: Sequence[Outcome],
    simulated: Sequence[Row],
    *,
    command: str,
    plot_name: str | None,
    simulated_plot_name: str | None,
) -> str:
    """The page in Markdown."""
    rows = [outcome.row for outcome in outcomes if outcome.row.get("state") == "done"]
    shown = [factor.name for factor in study.factors if len(factor.levels) > 1]
    shown += ["seed"] if len(study.seeds) > 1 else []
    same = [f"{factor.name} {factor.levels[0].name}" for factor in study.factors
            if len(factor.levels) == 1]  # fmt: skip
    parts = [
        f"# {study.title}\n", study.question.strip() + "\n", f"```bash\n{command}\n```\n",
        f"Every run is {set_up_of(study)}" + (f"; {', '.join(same)}" if same else "") + ".\n",
    ]  # fmt: skip
    if rows:
        several = len(study.grid.workers) > 1  # else there is nothing to be more efficient than
        columns = tuple(one for one in _SPEED if several or one[1] is not _efficiency)
        parts += ["## Measured\n", _table(rows, shown, columns), _EXPLAINED]
        parts += [f"{NO_TEXT}\n"] if have_no_text(rows) else []
        parts += [_EFFICIENCY] if several else []
    if plot_name:
        parts.append(f"![target tokens a second]({plot_name})\n")
    if rows:
        parts += [
            "## Where a step's time goes\n", "Milliseconds of a step of worker 0; behind the "
            "stroke what was planned.\n", _table(rows, shown, _phases(rows)),
        ]  # fmt: skip
    if planned := [row for row in rows if row.get("planned_machine")]:
        parts += ["## Planned\n", _on(planned), _table(rows, shown, _PLANNED)]
    parts += not_made(outcomes)
    if simulated:
        parts += _simulated_part(study, simulated, simulated_plot_name)
    parts.append(made_on([outcome.machine for outcome in outcomes]))
    return "\n".join(parts)


_EFFICIENCY = """\
*Efficiency*: tokens/s for each thread (or GPU), by that of the fewest workers in the same rows that
were measured, on cores of their own: *base*.
"""
_EXPLAINED = """\
*Step*: from one to the next, with the agreement before it and its share of checkpoints' stalls, as
in plans; so are tokens/s. Of all log lines but the first after each start. *Waiting for data*,
*exchange*: their share of a step, the latter with all waits for other workers. *Memory*: of the
worker that held most.
"""
_SIMULATED_EXPLAINED = """\
*Efficiency*: tokens/s of each worker, by that of the fewest in the same rows that fit: *base*. More
than 100 % is no mistake: where the base has more rows on each worker, the exact output layer has
more of them to update in a step, and too many for one pass take two.
"""
_UNEVEN = """\
*Uneven*: fewer tokens than `data.max_tokens`: a long sentence is more than a worker's part. Workers
then have unlike many tokens and wait for each other, which is not simulated.
"""
# What is said where any size has a value in a column.
_NOTES = ((_SIMULATED_EXPLAINED, "planned_efficiency"), (_UNEVEN, "uneven"))


def _on(rows: Sequence[Row]) -> str:
    return f"By the machine file {_machines(rows)}, and the same configurations, before a run.\n"


def _phases(rows: Sequence[Row]) -> _Columns:
    """A column for each phase that any run has."""

    def column(name: str) -> Callable[[Row], str | None]:
        def text(row: Row) -> str | None:
            if not row.get("phases"):
                return None
            planned = row.get("planned_phases")
            told = f"{planned.get(name, 0.0) * 1e3:,.1f}" if planned else "–"
            return f"{row['phases'].get(name, 0.0) * 1e3:,.1f} / {told}"

        return text

    names = (*PHASES, REST)
    used = [name for name in names if any((row.get("phases") or {}).get(name) for row in rows)]
    return tuple((name, column(name)) for name in used)


def _simulated_part(
    study: ScalingStudy, simulated: Sequence[Row], plot_name: str | None
) -> list[str]:
    assert study.simulate is not None
    more = ", ".join(f"`{key}={value}`" for key, value in study.simulate.set.items())
    levels = [factor.name for factor in study.factors
              if factor.name == "workers" or len(factor.levels) > 1]  # fmt: skip
    parts = [
        "## Simulated\n",
        f"**Nothing below was measured on so many workers.** It is computed from the figures of "
        f"the machine file {_machines(simulated)} by the model of "
        "`dist-embed plan`, with rows where they lie on that many workers, and words by Zipf's law"
        + (f"; with {more}" if more else "")
        + ".\n",
        _table(simulated, levels, _SIMULATED),
        *(said for said, name in _NOTES if any(row.get(name) for row in simulated)),
        "What limits the most workers, what would change that, and what grows with them:\n",
    ]
    for breaks in what_breaks(simulated):
        named = ", ".join(f"{name} {breaks.row['levels'][name]}" for name in levels)
        parts.append(f"- {named}: {breaks.row['planned_bottleneck']}")
        parts += [f"  - {line}" for line in (*breaks.remedies, *breaks.pressures)]
    parts.append("")
    return parts + ([f"![simulated target tokens a second]({plot_name})\n"] if plot_name else [])


def _machines(rows: Sequence[Row]) -> str:
    """With where their figures are from, which earlier versions did not say."""
    named = {f"`{row['planned_machine']}` ({row['planned_source'] or 'not said'})" for row in rows}
    return ", ".join(sorted(named))


def _table(rows: Sequence[Row], levels: Sequence[str], columns: _Columns) -> str:
    """Of columns that any row has something in."""
    kept = [(head, text) for head, text in columns if any(text(row) for row in rows)]
    lines = ["| " + " | ".join([*levels, *(head for head, _ in kept)]) + " |"]
    lines.append("|" + " --- |" * len(levels) + " ---: |" * len(kept))
    for row in rows:
        named = [str(row["seed"]) if name == "seed" else row["levels"][name] for name in levels]
        lines.append("| " + " | ".join([*named, *(text(row) or "–" for _, text in kept)]) + " |")
    return "\n".join(lines) + "\n"


def plots_of(page: Path) -> tuple[Path, Path]:
    """Where the plots of a page lie: of what was measured, and of what is simulated."""
    return page.with_suffix(".svg"), page.with_name(f"{page.stem}-simulated.svg")

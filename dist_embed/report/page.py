"""A report: one HTML page that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import numpy as np

from dist_embed.observe.phase_names import metric_of
from dist_embed.report.chart import Chart, figure_of
from dist_embed.report.columns import BALANCE, MOST, WORKERS, Column
from dist_embed.report.lines import TABLE_ROWS, number
from dist_embed.report.markup import Markup, table, tag
from dist_embed.report.runs import RunFigures
from dist_embed.report.studies import StudyFigures, label_of

_STYLE = Path(__file__).with_name("page.css")
# Whatever comes from data could not load or run anything either.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, sections: Sequence[Markup]) -> str:
    """The whole page."""
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("title", title),
        Markup(f"<style>{_STYLE.read_text(encoding='utf-8')}</style>"),
    )
    body = tag("body", tag("h1", title), *sections)
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def runs_sections(runs: Sequence[RunFigures], charts: Sequence[Chart]) -> list[Markup]:
    """What a page says of runs."""
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for of in facts for name in of))
    rows = [[name, *(of.get(name, "") for of in facts)] for name in names]
    missing = [
        f"{run.name}: {line}" if len(runs) > 1 else line for run in runs for line in run.missing
    ]
    return [
        tag("section", table(["", *(run.name for run in runs)], rows), class_="facts"),
        *_not_here(missing),
        _charts("Course", charts),
        *(section for run in runs for section in _texts(run)),
    ]


def study_sections(study: StudyFigures, charts: Sequence[Chart]) -> list[Markup]:
    """What a page says of a study."""
    header = ["run", "workers", "target tokens/s", "efficiency", "ms a step", "GiB",
              "validation loss", "BLEU", "machine"]  # fmt: skip
    rows = [
        [
            label_of(row),
            *map(
                _shown,
                (
                    row["workers"],
                    row["tokens_per_second"],
                    row["efficiency"],
                    row["step_seconds_p50"] and 1e3 * row["step_seconds_p50"],
                    row["memory_bytes"] and max(row["memory_bytes"]) / 2**30,
                    row["validation_loss"],
                    row["validation_bleu"] if row["test_bleu"] is None else row["test_bleu"],
                ),
            ),
            f"{row['device'] or '?'}, {row['cores'] or '?'} cores",
        ]
        for row in study.done
    ]
    return [
        tag("section", tag("h2", f"Study {study.name}"), table(*_filled(header, rows)),
            class_="facts"),
        *_not_here(study.missing),
        _charts("Charts", charts),
    ]  # fmt: skip


def _filled(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Without columns that no row has anything in, but the first, which names rows."""
    places = [at for at in range(len(header)) if at == 0 or any(row[at] for row in rows)]
    return [header[at] for at in places], [[row[at] for at in places] for row in rows]


def _not_here(lines: Sequence[str]) -> list[Markup]:
    if not lines:
        return []
    items = tag("ul", *(tag("li", line) for line in lines))
    return [tag("section", tag("h2", "What is not here"), items)]


def _charts(title: str, charts: Sequence[Chart]) -> Markup:
    figures = tag("div", *(figure_of(chart) for chart in charts), class_="charts")
    return tag("section", tag("h2", title), figures)


def _shown(value: float | None) -> str:
    return "" if value is None else number(value)


def made_by(command: str) -> Markup:
    """Which command has made the page, by which version."""
    try:
        by = f"dist_embed {version('dist_embed')}"
    except PackageNotFoundError:  # called from a folder, without an installation
        by = "dist_embed"
    return tag("p", f"{command} · {by}", class_="quiet")


def _facts(run: RunFigures) -> dict[str, str]:
    """The figures of a run that stand above all charts, as text."""
    best = {
        name: _best(run.column(column), lowest=lowest)
        for name, column, lowest in (
            ("lowest validation loss", "validation_loss", True),
            ("highest BLEU", "validation_bleu", False),
            ("highest chrF", "validation_chrf", False),
        )
    }
    middle = {
        "target tokens/s, median": run.column("tokens_per_second"),
        "ms a step, median": _scaled(run.column("step_seconds"), 1e3),
        "workers": run.column(WORKERS),
        "balance of own time, median": run.column(f"workers/own_seconds{BALANCE}"),
        "balance of rows, median": run.column(f"workers/rows_requested{BALANCE}"),
    }
    memory = run.column(f"workers/memory_bytes{MOST}").finite
    stall = run.column(metric_of("checkpoint stall")).finite
    times = run.column("time").finite
    facts = {
        "run": run.uri,
        "steps": f"{run.last_step:,} of {run.config.train.max_steps:,}",
        **best,
        **{name: _median(column) for name, column in middle.items()},
        "most memory of a worker, GiB": number(float(memory.max()) / 2**30) if len(memory) else "",
        "hours since the first line": number((times[-1] - times[0]) / 3600) if len(times) else "",
        "checkpoints that are there": f"{len(run.checkpoints):,}",
        "seconds waited for checkpoints": number(float(stall.sum())) if len(stall) else "",
    }  # fmt: skip
    return {name: text for name, text in facts.items() if text}


def _median(column: Column) -> str:
    return number(float(np.median(column.finite))) if len(column.finite) else ""


def _scaled(column: Column, by: float) -> Column:
    return Column(column.steps, column.values * by)


def _best(column: Column, *, lowest: bool) -> str:
    if not len(column.finite):
        return ""
    place = int(np.nanargmin(column.values) if lowest else np.nanargmax(column.values))
    return f"{number(float(column.values[place]))} (step {column.steps[place]:,.0f})"


def _texts(run: RunFigures) -> list[Markup]:
    """Translations and neighbours over time."""
    of_sentences = [
        table((), [["source", one.source], ["reference", one.reference], *_steps(one.translations)])
        for one in run.sentences
    ]
    of_words = [
        tag("div", tag("h3", one.word), table((), _steps({
            step: ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)
            for step, near in one.neighbors.items()
        })))
        for one in run.words
    ]  # fmt: skip
    titles = {f"Translations of {run.name}": of_sentences,
              f"Neighbours in {run.name}, with their cosine": of_words}  # fmt: skip
    return [
        tag("section", tag("h2", title), tag("div", *parts, class_="texts"))
        for title, parts in titles.items()
        if parts
    ]


def _steps(texts: Mapping[int, str]) -> list[list[str]]:
    """A row for each step after which a text is another one than before; of many some."""
    rows: list[list[str]] = []
    for text, steps in groupby(texts, key=texts.__getitem__):
        first, *others = steps
        to = f" to {others[-1]:,}" if others else ""
        rows.append([f"step {first:,}{to}", text])
    if len(rows) <= TABLE_ROWS:
        return rows
    kept = np.linspace(0, len(rows) - 1, TABLE_ROWS).astype(int).tolist()
    return [rows[at] for at in kept] + [["others", f"{len(rows) - TABLE_ROWS:,} are left out"]]

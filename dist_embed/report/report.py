"""From runs and studies to their page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dist_embed.report.chart import write_chart
from dist_embed.report.page import made_by, page, runs_sections
from dist_embed.report.run_charts import run_charts
from dist_embed.report.runs import names_of, read_run
from dist_embed.storage import uri as storage


def report(
    sources: Sequence[str], *, command: str, words: Sequence[str] = (), charts: Path | None = None
) -> str:
    """The page, as HTML.

    Args:
        sources: runs.
        command: that has asked for it, for the page.
        words: see `read_run`.
        charts: a folder that gets each chart as files.

    Raises UserError.
    """
    uris = list(dict.fromkeys(storage.given(source, "run") for source in sources))
    runs = [read_run(uri, name, words) for uri, name in zip(uris, names_of(uris), strict=True)]
    drawn = run_charts(runs)
    for chart in drawn if charts else ():
        write_chart(chart, charts)
    title = ", ".join(run.name for run in runs)
    return page(title, [made_by(command), *runs_sections(runs, drawn)])

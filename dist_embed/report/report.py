"""From runs and studies to their page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dist_embed.errors import UserError
from dist_embed.report.chart import Chart, write_chart
from dist_embed.report.page import made_by, page, runs_sections, study_sections
from dist_embed.report.run_charts import run_charts
from dist_embed.report.runs import RunFigures, names_of, read_run
from dist_embed.report.studies import folder_of_study, read_study
from dist_embed.report.study_charts import study_charts
from dist_embed.storage import uri as storage


def report(
    sources: Sequence[str], *, command: str, words: Sequence[str] = (), charts: Path | None = None,
    machine: str | None = None,
) -> str:  # fmt: skip
    """The page, as HTML.

    Args:
        sources: folders or URLs of runs or of studies, or studies' files.
        command: that has asked for it, for the page.
        words: see `read_run`.
        charts: a folder that gets each chart as files.
        machine: see `read_run`.

    Raises UserError.
    """
    given = [storage.given(source, "RUN|STUDY") for source in sources]
    folders = {source: folder_of_study(source) for source in given}
    uris = _different(source for source in given if folders[source] is None)
    if words and not uris:
        raise UserError(f"--words: {[*words]} is not allowed: studies have none")
    if machine and not uris:
        raise UserError(f"--machine: {machine!r} is not allowed: studies have plans of their own")
    runs = [
        read_run(uri, name, words, machine) for uri, name in zip(uris, names_of(uris), strict=True)
    ]
    _check_found(words, runs)
    found = _different(folder for folder in folders.values() if folder is not None)
    studies = [read_study(uri, name) for uri, name in zip(found, names_of(found), strict=True)]
    sections, drawn, several = [made_by(command)], list[Chart](), len(studies) + bool(runs) > 1

    def named(of_part: list[Chart], part: str) -> list[Chart]:
        """Names are those of files and of places in the page."""
        own = [replace(c, name=f"{part}-{c.name}") for c in of_part] if several else of_part
        drawn.extend(own)
        return own

    if runs:
        sections += runs_sections(runs, named(run_charts(runs), "runs"))
    for number, study in enumerate(studies, start=1):
        sections += study_sections(study, named(study_charts(study), f"study-{number}"))
    if charts:
        for chart in drawn:
            write_chart(chart, charts)
    names = [run.name for run in runs] + [study.name for study in studies]
    return page(", ".join(names), sections)


def _different(uris: Iterable[str]) -> list[str]:
    """Each place once, in whatever ways it is named."""
    return list({storage.absolute(uri): uri for uri in uris}.values())


def _check_found(words: Sequence[str], runs: Sequence[RunFigures]) -> None:
    """Raise UserError for a word that no run has."""
    found = {one.word for run in runs for one in run.words}
    for word in words:
        if word not in found:
            told = [line for run in runs for line in run.missing if repr(word) in line]
            raise UserError(f"--words: {word!r} is not allowed: {told[0]}")

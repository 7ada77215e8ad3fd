"""A report as a reader sees it: in a real browser, on a telephone and on a desk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_embed.report.report import report
from dist_embed.study.results import write_results
from tests.unit.study_rows import scaling_rows
from tests.unit.told_runs import step_line, told_run, whole_course

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (the extra `dev` has it)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package `chromium`)"),
    pytest.mark.integration,
]
LIMIT_MS = 120_000
# Of each figure: how large it is drawn, and its rows where the table is open.
FIGURES = """[...document.querySelectorAll("figure")].map(figure => {
  const box = figure.querySelector(".chart svg").getBBox();
  figure.querySelector("details").open = true;
  return [figure.id, box.width, box.height, figure.querySelectorAll(".chart path").length,
          figure.querySelectorAll("tbody tr").length];
})"""
# What is wider than the page, but for what scrolls by itself.
TOO_WIDE = """[...document.querySelectorAll("body *")]
  .filter(one => !one.parentElement.closest(".wide") && !one.closest("svg"))
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(one => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Its sandbox needs what containers of root do not have.
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(
            executable_path=CHROMIUM, args=[*arguments, "--disable-dev-shm-usage"], timeout=LIMIT_MS
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs, one of them still going and of a long name, and of a study."""
    folder = tmp_path_factory.mktemp("report")
    going = [step_line(10), step_line(20, nll=None, loss=None)]
    sources = [
        told_run(folder / "complete", whole_course()),
        told_run(folder / ("a-run-with-a-very-long-name" * 3), going),
    ]
    (folder / "study").mkdir()
    write_results(str(folder / "study"), scaling_rows())
    path = folder / "page.html"
    path.write_text(report([*sources, str(folder / "study")], command="dist-embed report"))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_every_chart_is_drawn_and_nothing_scrolls_sideways(
    browser: Any, page_file: Path, width: int, scheme: str
) -> None:
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(LIMIT_MS)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    figures = page.evaluate(FIGURES)
    assert len(figures) > 15
    for name, across, high, paths, rows in figures:
        assert across > 150, name
        assert high > 60, name
        assert paths > 3, name
        assert rows > 0, name
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Letters of charts have the page's colour, light on dark or dark on light.
    ink, letters, paper = page.evaluate("""[
      getComputedStyle(document.body).color,
      getComputedStyle(document.querySelector("figure svg text")).fill,
      getComputedStyle(document.body).backgroundColor]""")
    assert letters == ink
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert said == []
    assert asked == [page_file.as_uri()]
    page.close()

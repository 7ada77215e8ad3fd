"""What a chart of a report is: a drawing, for a page or a file, and a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.observe.events import printable
from dist_embed.observe.plot import ENDINGS, GREY, INK, plot_into, svg_of
from dist_embed.report.markup import Markup, table, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/),
# without the yellow, too light on white. In the dark a page has lighter ones in their place.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = {"-": "", "--": "7 4", ":": "2 3", "-.": "7 3 2 3"}
# At 400 pixels a page has 376 for a chart: these inches, so that its letters are 12 pixels high.
WIDTH, HEIGHT = 3.9, 2.5
# Inches of a file. Matplotlib 3.9 refuses a PNG of 2¹⁶ pixels, which are 327; later ones take
# memory for it.
_HIGHEST = 100.0
_NAME_LETTERS = 49  # of a row: as wide as a chart
_IN_PAGE = {color: f"var(--c{number})" for number, color in enumerate(COLORS)} | {
    INK: "var(--ink)", GREY: "var(--grey)", "#ffffff": "var(--paper)",
}  # fmt: skip
_FONTS = re.compile(r" font-family: [^;\"]*;| font: (\d+)px [^;\"]*;")
_IDS = re.compile(r' id="[A-Za-z]+[.\w]*_\d+"')


@dataclass(frozen=True)
class Table:
    """The numbers of a chart.

    Attributes:
        header: of each column; the first names rows.
        rows: as text.
        note: what a reader has to know.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: of its file, different for each chart of a report.
        title: what is drawn.
        note: what its marks are.
        draw: draws it into axes.
        table: its numbers.
        key: what its colours are, by their numbers, see `look`.
        height: inches.
    """

    name: str
    title: str
    note: str
    draw: Callable[[Axes], None]
    table: Table
    key: Sequence[str] = ()
    height: float = HEIGHT


def look(number: int) -> dict[str, Any]:
    """Colour, marks and dashes of the so-many-th run or group, from 0."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": list(_DASHES)[number // len(COLORS) % len(_DASHES)],
    }


def name_rows(axes: Axes, names: Sequence[str], each: int = 2) -> None:
    """Make a chart of rows, so many for each name, of which the first has it: before its bars a
    long one would leave them no room.
    """
    for at, name in enumerate(names):
        text = axes.annotate(
            _shortened(printable(name)), (0, each * at), xycoords=axes.get_yaxis_transform(),
            xytext=(2, 0), textcoords="offset points", va="center", size=8,
        )  # fmt: skip
        text.set_in_layout(False)
    axes.set_yticks([])
    axes.set_ylim(each * len(names) - 0.3, -0.7)


def height_of_rows(names: int, each: int = 2) -> float:
    """Inches of a chart with `name_rows`."""
    return 0.7 + 0.15 * each * max(2, names)


def _shortened(name: str) -> str:
    if len(name) <= _NAME_LETTERS:
        return name
    half = (_NAME_LETTERS - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def figure_of(chart: Chart) -> Markup:
    """The chart as a page has it, with its table."""
    svg = svg_of(chart.draw, width=WIDTH, height=chart.height, name=chart.name)
    words = chart.table.note
    return tag(
        "figure",
        tag("h3", chart.title),
        *([_key(chart.key)] if len(chart.key) > 1 else []),
        tag("div", _of_page(svg), class_="chart", role="img", aria_label=chart.title),
        tag("figcaption", chart.note),
        tag(
            "details", tag("summary", "Table"), *([tag("p", words)] if words else []),
            table(chart.table.header, chart.table.rows),
        ),
        id=chart.name,
    )  # fmt: skip


def write_chart(chart: Chart, folder: Path) -> None:
    """The chart as files for a paper, with a legend: NAME.svg and NAME.png in a folder."""
    from matplotlib.lines import Line2D

    height = min(chart.height * 1.4, _HIGHEST)
    for ending in ENDINGS:
        with plot_into(str(folder / f"{chart.name}{ending}"), height=height) as axes:
            chart.draw(axes)
            axes.set_title(chart.title)
            if len(chart.key) > 1:
                lines = [Line2D([], [], **look(place)) for place in range(len(chart.key))]
                axes.legend(
                    lines, chart.key, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1)
                )


def _key(labels: Sequence[str]) -> Markup:
    """Which colour and mark is whose."""
    entries = []
    for place, label in enumerate(labels):
        own = look(place)
        line = tag(
            "svg",
            tag("line", x1="0", y1="5", x2="30", y2="5", stroke_width="4",
                stroke_dasharray=_DASHES[own["linestyle"]],
                style=f"stroke: {_IN_PAGE[own['color']]}"),
            viewBox="0 0 30 10", aria_hidden="true",
        )  # fmt: skip
        entries.append(tag("li", line, label))
    return tag("ul", *entries, class_="key")


def _of_page(svg: str) -> Markup:
    """Without what a file needs, and in the page's colours and letters."""
    svg = svg[svg.index("<svg") :]
    svg = _FONTS.sub(lambda found: f" font-size: {found[1]}px;" if found[1] else "", svg)
    svg = _IDS.sub("", svg)
    for color, variable in _IN_PAGE.items():
        svg = svg.replace(f": {color}", f": {variable}")
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))

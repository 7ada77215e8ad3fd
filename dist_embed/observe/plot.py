"""What all plots share: one quiet style, direct labels, and equal files for equal data.

Nothing here touches matplotlib's global state for longer than a plot is drawn, and matplotlib is
imported only then: commands without a plot start as fast as before.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dist_embed.arguments import begins
from dist_embed.errors import UserError
from dist_embed.installed import require
from dist_embed.observe.fonts import families_for
from dist_embed.storage import uri as storage
from dist_embed.storage.trials import check_new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#1a1a1a"
GREY = "#8a8a8a"  # light enough to differ from INK in black and white, dark enough to be read
ENDINGS: tuple[str, ...] = (".svg", ".png")
LABEL_POINTS = 11.0  # from one label to the next above it
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "xtick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.major.width": 0.6,
    "savefig.bbox": "tight",  # labels may stand outside the axes
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text: a third of the bytes, and it can be searched
    "svg.hashsalt": "dist_embed",  # without it the ids in an SVG are random
    "text.parse_math": False,  # a word or a name may have two dollar signs
}


def check_plot_path(path: str, endings: tuple[str, ...] = ENDINGS) -> None:
    """Refuse a file that could not be drawn, before anything long is done for it.

    Raises:
        UserError: another ending than ``endings``, a folder that does not exist, or no matplotlib.
    """
    if Path(path).suffix not in endings:
        raise UserError(f"{path}: a plot is written to a file that ends in {' or '.join(endings)}")
    check_new_file(path, "plot")
    if Path(path).suffix in ENDINGS:
        require("matplotlib")


@contextmanager
def plot_into(
    path: str, *, width: float = 5.6, height: float = 3.6, texts: Iterable[str] = ()
) -> Iterator[Axes]:
    """Axes to draw into, written to ``path`` when the block has ended without an error.

    Equal calls write equal bytes with one version of matplotlib, whatever the user's own settings
    of it are.

    Args:
        path: an SVG or PNG file.
        width: inches, without what stands outside the axes.
        height: inches.
        texts: words of any language that are drawn, for whose letters fonts are looked for.

    Raises:
        UserError: see `check_plot_path`.
    """
    check_plot_path(path)
    _import_matplotlib()
    with _figure(width, height, _STYLE | {"font.family": families_for(texts)}) as figure:
        yield figure.add_subplot()
        nothing = {"Date": None, "Creator": None} if path.endswith(".svg") else {"Software": None}
        drawn = io.BytesIO()
        with warnings.catch_warnings():  # who draws words tells which it could not
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(drawn, format=Path(path).suffix[1:], metadata=nothing)
        storage.write_given_bytes(path, drawn.getvalue())


def svg_of(draw: Callable[[Axes], None], *, width: float, height: float, name: str) -> str:
    """An SVG of exactly that size, without a background, for a page that holds several.

    Args:
        draw: draws into axes.
        width: inches, with all that stands outside the axes.
        height: likewise.
        name: different for each SVG of a page, or they would have the same ids.
    """
    _import_matplotlib()
    text = io.StringIO()
    with _figure(width, height, _STYLE | {"savefig.bbox": None, "svg.hashsalt": name}) as figure:
        figure.set_layout_engine("constrained")
        draw(figure.add_subplot())
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    return text.getvalue()


def _import_matplotlib() -> None:
    """Raises UserError where the environment has it set up so that it cannot be."""
    try:
        import matplotlib  # noqa: F401
    except ValueError as exc:  # of MPLBACKEND (3.11, __init__.py)
        raise UserError(f"matplotlib cannot be used: {begins(str(exc))}; unset MPLBACKEND") from exc


@contextmanager
def _figure(width: float, height: float, settings: dict[str, Any]) -> Iterator[Figure]:
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(settings, after_reset=True):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure


def alone(values: Sequence[float | None]) -> list[int]:
    """Places of values without a neighbour to draw a line to: only a mark shows them."""
    known = [value is not None and math.isfinite(value) for value in (None, *values, None)]
    return [at for at in range(len(values)) if known[at : at + 3] == [False, True, False]]


def log_axis(axes: Axes, name: Literal["x", "y"], ticks: Sequence[float] | None = None) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10, … or at ``ticks``."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    if name == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axis.set_minor_locator(NullLocator())


def short_number(value: float) -> str:
    """As few letters as an axis has room for: 2,048, but 10 k, 4 M and 2 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 1e4 and value >= size:
            return f"{value / size:.12g} {unit}"
    return f"{value:,.12g}"


def label_ends(axes: Axes, x: float, labels: Sequence[tuple[float, str]]) -> None:
    """Write each of ``labels`` (y, text) to the right of (x, y), without one covering another.

    To be called when all is drawn: what is drawn decides the limits of the axes, which stay.
    """
    axes.set_ylim(axes.get_ylim())
    points = 72 / axes.figure.dpi
    ordered = sorted(labels)
    wanted = [float(axes.transData.transform((x, y))[1]) * points for y, _ in ordered]
    for (y, text), want, place in zip(ordered, wanted, spread(wanted, LABEL_POINTS), strict=True):
        axes.annotate(
            text, (x, y), xytext=(14, place - want), textcoords="offset points", va="center"
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The ascending ``places``, moved as little as it takes to lie ``gap`` apart.

    Places that are too close form a block around their mean; blocks that meet become one.
    """
    blocks: list[list[float]] = []

    def lowest(block: list[float]) -> float:
        return sum(block) / len(block) - gap * (len(block) - 1) / 2

    for place in places:
        blocks.append([place])
        while len(blocks) > 1 and lowest(blocks[-1]) < lowest(blocks[-2]) + gap * len(blocks[-2]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [lowest(block) + gap * number for block in blocks for number in range(len(block))]

"""A study's plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dist_embed.observe.plot import GREY, INK, LABEL_POINTS, label_ends, log_axis, plot_into
from dist_embed.study.outcome import Outcome
from dist_embed.study.plan import combinations, levels_of
from dist_embed.study.schema import MEASURES, TrainingStudy
from dist_embed.study.summary import Summary, summaries

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MARKERS = ("o", "s", "^", "D", "v")
_STYLES = ("-", "--", ":", "-.")


def draw_study(study: TrainingStudy, outcomes: Sequence[Outcome], path: str) -> None:
    """The plot of the study: a mean and a bar of one standard deviation at each place.

    Where seeds have no finite value, those that have are drawn alone, as open marks, since their
    mean would be that of the luckiest; the others are told above the axes.

    Raises UserError for a file that cannot be drawn.
    """
    assert study.plot is not None
    plot, found = study.plot, summaries(study, outcomes)
    along = levels_of(study, plot.x)
    # Without places the levels stand side by side, and no line leads from one to the next.
    by_name = all(level.x is None for level in along)
    place_of = {
        level.name: float(number) if level.x is None else level.x
        for number, level in enumerate(along)
    }
    lines = [level.name for level in levels_of(study, plot.lines)] if plot.lines else [None]
    with plot_into(path) as axes:
        places = list(place_of.values())
        if by_name:
            axes.set_xticks(places, list(place_of))
            axes.margins(x=0.15)
        elif plot.logarithmic:
            log_axis(axes, "x", places)
        else:
            axes.set_xticks(places)
        ends: dict[float, list[tuple[float, str]]] = {}
        left_out: list[tuple[str, list[tuple[float, str]]]] = []
        for number, line in enumerate(lines):
            own = [c for c in combinations(study) if line is None or c[plot.lines or ""] == line]
            points = [(place_of[c[plot.x]], found[c.key][plot.measure]) for c in own]
            _draw_line(axes, points, number, joined=not by_name)
            text = "" if line is None else line
            if any(s.finite for _, s in points):
                place, last = max(
                    (place, max(s.finite) if s.left_out else s.mean)
                    for place, s in points
                    if s.finite
                )
                ends.setdefault(place, []).append((last, text))
            told = [(place, s.left_out) for place, s in points if s.left_out]
            if told:
                left_out.append((text, told))
        # Levels of which nothing is drawn have their place all the same.
        axes.update_datalim([(place, 0.0) for place in places], updatey=False)
        axes.autoscale_view()
        axes.set_xlabel(plot.label)
        rows = 4 + LABEL_POINTS * len(left_out) if left_out else 0.0
        axes.set_title(MEASURES[plot.measure][0], pad=6 + rows)
        for place, labels in ends.items():
            label_ends(axes, place, labels)
        if not ends:
            axes.set_yticks([])
        _tell_left_out(axes, left_out)


def _draw_line(
    axes: Axes, points: Sequence[tuple[float, Summary]], number: int, *, joined: bool
) -> None:
    """The ``number``-th: at each place a mean and a bar, or what there is of it as open marks."""
    look: dict[str, Any] = {
        "color": INK if number == 0 else GREY, "marker": _MARKERS[number % len(_MARKERS)],
    }  # fmt: skip
    axes.errorbar(
        [place for place, _ in points],
        [math.nan if s.left_out else s.mean for _, s in points],
        yerr=[0.0 if math.isnan(s.deviation) else s.deviation for _, s in points],
        **look,
        linestyle=_STYLES[number % len(_STYLES)] if joined else "",
        capsize=2,
        elinewidth=0.6,
    )
    alone = [(place, one) for place, s in points if s.left_out for one in s.finite]
    if alone:
        axes.plot(*zip(*alone, strict=True), **look, markerfacecolor="none", linestyle="")


def _tell_left_out(axes: Axes, lines: Sequence[tuple[str, list[tuple[float, str]]]]) -> None:
    """Above the axes a row for each line (its name, places and words), the first one on top."""
    for row, (name, told) in enumerate(reversed(lines)):
        height = 8 + LABEL_POINTS * row
        for place, words in told:
            axes.annotate(
                words, (place, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, height),
                textcoords="offset points", ha="center", size=8,
            )  # fmt: skip
        axes.annotate(
            name and f"{name}:", (0, 1), xycoords="axes fraction", xytext=(-22, height),
            textcoords="offset points", ha="right", size=8,
        )  # fmt: skip

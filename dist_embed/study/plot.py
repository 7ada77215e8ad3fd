"""A study's plot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dist_embed.observe.plot import GREY, INK, label_ends, log_axis, plot_into
from dist_embed.study.plan import combinations, levels_of
from dist_embed.study.run import Outcome
from dist_embed.study.schema import MEASURES, TrainingStudy
from dist_embed.study.summary import summaries


def draw_study(study: TrainingStudy, outcomes: Sequence[Outcome], path: str) -> None:
    """The plot of the study: a mean and a bar of one standard deviation at each place.

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
        ends = []
        markers = ("o", "s", "^", "D", "v")
        for number, line in enumerate(lines):
            own = [c for c in combinations(study) if line is None or c[plot.lines or ""] == line]
            points = [(place_of[c[plot.x]], found[c.key][plot.measure]) for c in own]
            x = [place for place, _ in points]
            y = [summary.mean for _, summary in points]
            bars = [0.0 if math.isnan(s.deviation) else s.deviation for _, s in points]
            axes.errorbar(
                x, y, yerr=bars, color=INK if number == 0 else GREY,
                marker=markers[number % len(markers)], capsize=2, elinewidth=0.6,
                linestyle="" if by_name else ("-", "--", ":", "-.")[number % 4],
            )  # fmt: skip
            ends.append((y[x.index(max(x))], "" if line is None else line))
        axes.set_xlabel(plot.label)
        axes.set_title(MEASURES[plot.measure][0])
        label_ends(axes, max(places), [(y, text) for y, text in ends if not math.isnan(y)])

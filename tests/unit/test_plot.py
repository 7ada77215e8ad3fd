from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.bench.balance import Balance, plot_balance
from dist_embed.errors import UserError
from dist_embed.observe.plot import (
    LABEL_POINTS,
    check_plot_path,
    label_ends,
    log_axis,
    plot_into,
    short_number,
    spread,
)
from tests.unit.full_disk import full_disk

ROOT = Path(__file__).parents[2]
FOUND = [
    Balance(rows, shards, 1.0, [1 + shards / 1e4, 1.0], [shards / 2 + rows / 1e7, 1.0])
    for rows in (1000, 1_000_000)
    for shards in (2, 64, 1024)
]


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_equal_data_gives_equal_bytes(tmp_path: Path, ending: str) -> None:
    import matplotlib

    plot_balance(FOUND, str(tmp_path / f"first{ending}"))
    with matplotlib.rc_context({"axes.grid": True, "svg.hashsalt": None}):  # a user's own settings
        plot_balance(FOUND, str(tmp_path / f"second{ending}"))
    plot_balance(FOUND[1:], str(tmp_path / f"other{ending}"))
    first, second, other = ((tmp_path / f"{n}{ending}").read_bytes() for n in
                            ("first", "second", "other"))  # fmt: skip
    assert first == second
    assert first != other
    assert b"<dc:date>" not in first
    assert matplotlib.__version__.encode() not in first


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_full_disk_leaves_the_plot_that_is_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plot{ending}"
    path.write_bytes(b"before")
    with full_disk(), pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        plot_balance(FOUND, str(path))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_global_state_stays_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_balance(FOUND, str(tmp_path / "plot.svg"))
    assert dict(matplotlib.rcParams) == before


def test_a_backend_that_there_is_not_is_told_in_a_line(tmp_path: Path) -> None:
    code = (
        "from dist_embed import UserError\n"
        "from dist_embed.observe.plot import plot_into, svg_of\n"
        "def into(): plot_into('x.svg').__enter__()\n"
        "def svg(): svg_of(lambda axes: None, width=1, height=1, name='a')\n"
        "for draw in (into, svg):\n"
        "    try:\n"
        "        draw()\n"
        "    except UserError as exc:\n"
        "        print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "MPLBACKEND": "none-such", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.count("matplotlib cannot be used: ") == 2, done
    assert done.stdout.count("unset MPLBACKEND") == 2


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dist_embed.observe.plot import plot_into\n"
        f"with plot_into({str(tmp_path / 'plot.png')!r}) as axes:\n    axes.plot([1, 2])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_where_drawing_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), plot_into(str(tmp_path / "plot.svg")):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plot", "plot.pdf", "svg", "missing/plot.svg"])
def test_files_that_cannot_be_drawn_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        check_plot_path(str(tmp_path / name))


def test_labels_at_the_ends_of_lines_lie_apart_as_drawn(tmp_path: Path) -> None:
    # 33.0 and 33.2 are nearly one place on an axis from 10 to 40, far apart on one from 0 to 1.
    with plot_into(str(tmp_path / "plot.png")) as axes:
        for last in (33.0, 33.2, 12.0):
            axes.errorbar([1, 2], [10.0, last], yerr=[0.0, 0.0])
        label_ends(axes, 2, [(33.0, "a"), (33.2, "b"), (12.0, "c")])
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    points = 72 / axes.figure.dpi
    found = sorted(
        float(axes.transData.transform((0, text.xy[1]))[1]) * points + text.xyann[1]
        for text in axes.texts  # type: ignore[attr-defined]
    )
    assert found[2] - found[1] == pytest.approx(LABEL_POINTS)
    assert found[1] - found[0] > 5 * LABEL_POINTS


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([3, 30], [3, 30]),
        ([3, 4], [-1.5, 8.5]),
        ([0, 0, 0], [-10, 0, 10]),
        ([0, 9, 11], [-10 / 3, 20 / 3, 50 / 3]),  # two pairs that meet become one block
    ],
)
def test_labels_are_moved_apart(places: list[float], expected: list[float]) -> None:
    assert spread(places, 10) == pytest.approx(expected)


@given(st.lists(st.floats(-1e3, 1e3)))
def test_labels_keep_their_order_and_their_middle(places: list[float]) -> None:
    places = sorted(places)
    found = spread(places, 10)
    assert all(b - a >= 10 - 1e-6 for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(places), abs=1e-6)


def test_numbers_on_an_axis_are_short() -> None:
    values = [0.25, 5, 1000, 2048, 9999, 10_000, 250_000, 1_000_000, 8_000_000, 1.5e9]
    assert [short_number(value) for value in values] == [
        "0.25", "5", "1,000", "2,048", "9,999", "10 k", "250 k", "1 M", "8 M", "1.5 G",
    ]  # fmt: skip


def test_a_logarithmic_axis_has_plain_numbers_where_it_is_told(tmp_path: Path) -> None:
    with plot_into(str(tmp_path / "plot.svg")) as axes:
        axes.plot([1, 30_000], [1, 20])
        log_axis(axes, "x", [1, 7, 30_000])
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
        log_axis(axes, "y")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "7", "30 k"]
    assert {1, 2, 5, 10, 20} <= {round(float(y), 9) for y in axes.get_yticks()}
    assert 3 not in axes.get_yticks()
    for axis in (axes.xaxis, axes.yaxis):
        assert list(axis.get_minorticklocs()) == []

"""``dist-embed bench one-hot``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_embed.bench import one_hot
from dist_embed.bench.one_hot import (
    WAYS,
    Cost,
    OneHotFigures,
    draw_one_hot,
    measure_one_hot,
    one_hot_table,
)
from dist_embed.cli.main import main
from tests.forks import forking
from tests.unit.drawn_axes import drawn_axes
from tests.unit.printed_tables import cells


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return drawn_axes(monkeypatch, one_hot)


def test_a_one_hot_product_is_a_lookup() -> None:
    matrix = torch.nn.Parameter(torch.randn(50, 7))
    ids = torch.tensor([3, 49, 3, 0])
    found = {}
    for name, way in WAYS.items():
        matrix.grad = None
        out = way(ids, matrix)
        out.backward(torch.arange(28.0).view(4, 7))
        assert matrix.grad is not None
        found[name] = (out.detach(), matrix.grad.to_dense())
    assert torch.equal(found["one_hot"][0], matrix.detach()[ids])
    for a, b in zip(found["one_hot"], found["lookup"], strict=True):
        torch.testing.assert_close(a, b)


def test_both_ways_are_measured_and_found_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process: what a process of its own is for is tried below.
    monkeypatch.setattr(one_hot, "_apart", lambda function, *arguments: function(*arguments))
    said: list[str] = []
    for one in measure_one_hot([100, 1000], 8, 64, 2, said.append):
        assert isinstance(one.one_hot, Cost)
        assert one.output_difference == 0
        assert one.gradient_difference is not None
        assert one.gradient_difference < 1e-4
    assert len(said) == 6


def started_by(monkeypatch: pytest.MonkeyPatch, context: Any) -> None:
    """Processes of `one_hot` alone."""
    ways = SimpleNamespace(get_context={"spawn": context}.__getitem__)
    monkeypatch.setattr(one_hot, "multiprocessing", ways)


def test_why_there_is_no_cost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2⁴⁰ words of 64 values: no machine has as much.
    assert one_hot._apart(one_hot._cost, "one_hot", 2**40, 64, 1, 1) == "does not fit"
    # The others are processes too, but forked: one that is started anew imports PyTorch first.
    started_by(monkeypatch, forking())
    with pytest.raises(RuntimeError, match="KeyError: 'no way'"):
        one_hot._apart(one_hot._cost, "no way", 10, 4, 1, 1)
    with pytest.raises(RuntimeError, match="ended with code 3"):
        one_hot._apart(os._exit, 3)
    monkeypatch.setattr(one_hot, "LIMIT_SECONDS", 0.1)
    assert one_hot._apart(time.sleep, 60) == "over 0 s"


SIZES = [
    OneHotFigures(1000, Cost(0.5, 3 * 2**30), Cost(0.0004, 2**29), 0.0, 1.5e-6),
    OneHotFigures(20_000, Cost(2.0, 4 * 2**30), "over 600 s", 0.5, None),
    OneHotFigures(300_000, "does not fit", Cost(0.001, 2**30), None, None),
]


@pytest.mark.parametrize("wrong", ["one_hot", "lookup"])
def test_two_ways_that_differ_are_told_by_how_much(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = one_hot.WAYS[wrong]
    monkeypatch.setitem(one_hot.WAYS, wrong, lambda ids, matrix: 2 * right(ids, matrix) + 0.5)
    ids, matrix, gradient = one_hot._batch(30, 4, 50)
    output = matrix.detach()[ids]
    summed = torch.zeros(30, 4).index_add(0, ids, gradient)
    assert one_hot._differences(30, 4, 50) == pytest.approx(
        (float((output + 0.5).abs().max()), float(summed.abs().max())), rel=1e-5
    )


@pytest.mark.parametrize(
    ("function", "sent"),
    [(lambda: 7, (7, None)), (lambda: [][0], (None, "IndexError")),
     (lambda: raised(MemoryError()), ("does not fit", None)),
     (lambda: raised(RuntimeError("can't allocate memory")), ("does not fit", None)),
     (lambda: raised(RuntimeError("another error")), (None, "another error"))],
)  # fmt: skip
def test_a_process_that_measures_tells_what_it_found(
    monkeypatch: pytest.MonkeyPatch, function: Any, sent: tuple[Any, str | None]
) -> None:
    written: list[Any] = []
    told: list[Any] = []
    monkeypatch.setattr(
        one_hot,
        "Path",
        lambda path: SimpleNamespace(write_text=lambda t: written.append((path, t))),
    )
    one_hot._answer(SimpleNamespace(send=told.append), function, ())
    # Where memory ends it is this one that the kernel ends.
    assert written == [("/proc/self/oom_score_adj", "1000")]
    ((result, failure),) = told
    assert result == sent[0]
    assert failure is None if sent[1] is None else sent[1] in failure


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("code", "found"), [(-9, "does not fit"), (-11, None), (3, None)])
def test_a_process_that_was_killed_for_its_memory_did_not_fit(
    monkeypatch: pytest.MonkeyPatch, code: int, found: str | None
) -> None:
    course: list[str] = []

    def end() -> None:
        course.append("waited for")

    def nothing() -> None:
        raise EOFError

    process = SimpleNamespace(
        start=lambda: course.append("started"), exitcode=code, join=end,
        kill=lambda: course.append("killed"),
    )  # fmt: skip
    ours = SimpleNamespace(poll=lambda seconds: seconds == 600.0, recv=nothing)
    theirs = SimpleNamespace(close=lambda: course.append("closed"))
    context = SimpleNamespace(Pipe=lambda duplex: (ours, theirs), Process=lambda **_: process)
    started_by(monkeypatch, context)
    if found is None:
        with pytest.raises(RuntimeError, match=f"a process ended with code {code}"):
            one_hot._apart(print)
    else:
        assert one_hot._apart(print) == found
    # Unless our copy of its end is closed, its end is never heard of.
    assert course == ["started", "closed", "waited for", "killed", "waited for"]


def test_a_size_that_does_not_fit_has_its_reason_in_the_table() -> None:
    head, rows = one_hot_table(SIZES)
    assert head[:4] == ["words", "one-hot ms", "lookup ms", "ratio"]
    assert head[4:6] == ["one-hot GiB", "lookup GiB"]
    assert rows == [
        ["1,000", "500.0", "0.4", "1,250", "3.00", "0.50", "0.0e+00", "1.5e-06"],
        ["20,000", "2,000.0", "over 600 s", "", "4.00", "", "5.0e-01", ""],
        ["300,000", "does not fit", "1.0", "", "", "1.00", "", ""],
    ]


def test_what_took_how_long_is_drawn_over_the_words(tmp_path: Path, drawn: list[Any]) -> None:
    draw_one_hot(SIZES, str(tmp_path / "p.svg"))
    (axes,) = drawn
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == [
        ([1000, 20_000], [500.0, 2000.0]), ([1000, 300_000], [0.4, 1.0]),
    ]  # fmt: skip
    assert [line.get_color() for line in axes.lines] == [one_hot.INK, one_hot.GREY]
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("log", "log", "words")
    assert list(axes.get_xticks()) == [1000, 20_000, 300_000]
    assert {(text.get_text(), *text.xy) for text in axes.texts} == {
        ("one-hot", 300_000, 2000.0), ("lookup", 300_000, 1.0),
    }  # fmt: skip
    assert axes.get_title(loc="left") == "milliseconds of a batch, forward and backward"
    draw_one_hot(SIZES[2:], str(tmp_path / "p.svg"))
    assert [text.get_text() for text in drawn[1].texts] == ["lookup"]


def test_a_cost_is_the_median_after_one_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.0, 50.0, 60.0, 61.0, 70.0, 73.0, 80.0, 82.0])
    monkeypatch.setattr(one_hot, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(one_hot, "reset_peak", lambda: 10_000)
    monkeypatch.setattr(one_hot, "peak_bytes", lambda: 15_000)
    # The matrix, 20 × 3 values of four bytes, was there before and is counted.
    assert one_hot._cost("lookup", 20, 3, 7, 3) == Cost(2.0, 5000 + 20 * 3 * 4)
    ids, matrix, gradient = one_hot._batch(20, 3, 7)
    assert (ids.shape, matrix.shape, gradient.shape) == ((7,), (20, 3), (7, 3))
    assert matrix.requires_grad
    assert torch.equal(ids, one_hot._batch(20, 3, 7)[0])


def test_sizes_that_do_not_fit_are_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def apart(function: Any, *arguments: Any) -> Any:
        asked.append((function, *arguments))
        if function is one_hot._differences:
            return (0.5, 0.25) if arguments[0] == 1000 else "does not fit"
        way, words = arguments[:2]
        if way == "one_hot":
            return Cost(0.25, 2**30) if words < 300_000 else "does not fit"
        return Cost(0.001, 2**29)

    monkeypatch.setattr(one_hot, "_apart", apart)
    said: list[str] = []
    figures = measure_one_hot([1000, 20_000, 300_000], 8, 64, 2, said.append)
    assert asked[:3] == [
        (one_hot._cost, "lookup", 1000, 8, 64, 2), (one_hot._cost, "one_hot", 1000, 8, 64, 2),
        (one_hot._differences, 1000, 8, 64),
    ]  # fmt: skip
    assert [(one.output_difference, one.gradient_difference) for one in figures] == [
        (0.5, 0.25), (None, None), (None, None)
    ]  # fmt: skip
    assert figures[2].one_hot == "does not fit"
    assert said[:3] == [
        "1,000 words",
        "  lookup: 1.0 ms, 0.50 GiB",
        "  one_hot: 250.0 ms, 1.00 GiB",
    ]
    assert said[-1] == "  one_hot: does not fit"
    assert len(asked) == 8


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    asked: list[Any] = []
    monkeypatch.setattr(one_hot, "measure_one_hot", lambda *given: asked.append(given) or SIZES)
    ask, out, plot = ["bench", "one-hot"], tmp_path / "found.json", tmp_path / "p.svg"
    given = ["--words", "1000", "300000", "--width", "8", "--tokens", "6400", "--rounds", "4"]
    assert main([*ask, *given, "--output", str(out), "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "a batch of 6,400 words drawn by Zipf's law, vectors of width 8, float32" in said
    assert "median of 4 rounds" in said
    head, rows = one_hot_table(SIZES)
    assert cells(said) == [head, *rows]
    figures = json.loads(out.read_text())["figures"]["sizes"]
    assert figures[0]["one_hot"] == {"seconds": 0.5, "peak_bytes": 3 * 2**30}
    assert figures[2]["one_hot"] == "does not fit"
    assert plot.exists()
    assert main(ask) == 0
    sizes = [1000, 10_000, 100_000, 1_000_000, 4_000_000, 8_000_000]
    assert asked == [([1000, 300_000], 8, 6400, 4, print), (sizes, 128, 1024, 3, print)]
    assert main([*ask, "--plot", "x.pdf"]) == 2  # before anything is measured
    assert len(asked) == 2

from __future__ import annotations

import json
import math
import os
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dist_embed.cli.main import main
from dist_embed.data.token_shards import SIDES
from dist_embed.errors import UserError
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.observe.plot import plot_into
from dist_embed.planning import load_machine, plan
from dist_embed.report.chart import MARKERS, WIDTH, Chart, write_chart
from dist_embed.report.columns import BALANCE, MOST, Column, columns_of, places_of_extremes
from dist_embed.report.lines import line_chart, number
from dist_embed.report.markup import Markup, tag
from dist_embed.report.page import page, runs_sections, study_sections
from dist_embed.report.report import report
from dist_embed.report.run_charts import run_charts
from dist_embed.report.runs import RunFigures, names_of, read_run
from dist_embed.report.step_time import bars_of_phases
from dist_embed.report.studies import folder_of_study, read_study
from dist_embed.report.study_charts import study_charts
from dist_embed.run.folder import read_run_config
from dist_embed.run.history import course_of, phases_of
from dist_embed.run.metrics import METRICS_NAME, sound_metrics
from dist_embed.study.results import RESULTS_NAME, SCHEMA, write_results
from tests.unit.small_run import small_run, word_tokenizer
from tests.unit.study_rows import scaling_rows
from tests.unit.told_runs import (
    step_line,
    told_run,
    translation_line,
    validation_line,
    whole_course,
)


class Elements(HTMLParser):
    """What a page consists of: names of elements, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


pytestmark = [
    pytest.mark.timeout(400),  # a page has dozens of charts
    pytest.mark.filterwarnings("error::UserWarning"),  # matplotlib's, where a chart has no room
]
HOSTILE = "<script>alert(1)<|script>$x_{$ &lt; \" ' <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two runs whose names, words and translations would like to be markup."""
    folder = tmp_path_factory.mktemp("report")
    lines = [*whole_course(), translation_line(100, HOSTILE, HOSTILE)]
    runs = [told_run(folder / name, lines) for name in (HOSTILE, "other")]
    return report(runs, command="dist-embed report")


def text_of(run: str) -> str:
    """What a page says of a run beside its charts."""
    return " ".join(runs_sections([read_run(run, "run")], []))


def written_study(folder: Path, rows: Sequence[Mapping[str, Any]] | None = None) -> str:
    folder.mkdir()
    write_results(str(folder), scaling_rows() if rows is None else rows)
    return str(folder)


# Columns


def test_figures_of_workers_become_the_most_and_how_even_they_are() -> None:
    columns = columns_of([step_line(10), step_line(20, **{"workers/rows_requested": [5, 5, 5]})])
    assert columns[f"workers/rows_requested{MOST}"].values.tolist() == [300, 5]
    assert columns[f"workers/rows_requested{BALANCE}"].values.tolist() == [1.5, 1.0]
    assert columns["workers"].values.tolist() == [2, 3]


def test_many_lines_are_as_few() -> None:
    """Of which some are told in one go; what none of them can be alone, a list of a number."""
    wrong = {"workers/own_seconds": [1.0, "x"], "loss": 2**60, "nll": [1.5]}
    lines = [step_line(step, **(wrong if step == 700 else {})) for step in range(1, 1301)]
    whole, parts = columns_of(lines), [columns_of([line]) for line in lines]
    for name, column in whole.items():
        own = [part[name] for part in parts if name in part]
        assert column.steps.tolist() == [one.steps.item() for one in own], name
        assert column.values.tolist() == [one.values.item() for one in own], name
    assert {*whole} == {name for part in parts for name in part}
    assert len(whole["loss"]) == len(whole[f"workers/own_seconds{MOST}"]) == 1299
    assert whole[f"nll{MOST}"].values.tolist() == [1.5]


def test_what_is_not_finite_is_a_gap_and_what_is_no_number_is_left_out() -> None:
    lines = [{"step": 1, "loss": None}, {"step": 2, "loss": 3}, {"step": 3, "loss": "x"},
             {"step": 4, "loss": math.inf}, {"step": 5, "workers/x": [1, "y"]}]  # fmt: skip
    columns = columns_of(lines)
    assert columns["loss"].steps.tolist() == [1, 2, 4]
    assert np.isnan(columns["loss"].values).tolist() == [True, False, True]
    assert not any(name.startswith("workers") for name in columns)


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=400), st.integers(5, 60)
)
def test_fewer_points_keep_ends_and_extremes(values: list[float], most: int) -> None:
    array = np.array(values)
    places = places_of_extremes(array, most)
    assert len(places) <= max(most, 2)
    assert (np.diff(places) > 0).all()
    assert {0, len(values) - 1} <= {*places.tolist()}
    if np.isfinite(array).any():
        assert np.nanmin(array[places]) == np.nanmin(array)
        assert np.nanmax(array[places]) == np.nanmax(array)
    assert np.isfinite(array[places]).all() == np.isfinite(array).all()


def test_gaps_stay_gaps_also_short_ones() -> None:
    values = np.arange(1000.0)
    values[[100, 101]] = values[300:600] = values[900] = math.nan
    shown = np.isfinite(values[places_of_extremes(values, 60)])
    assert np.count_nonzero(np.diff(shown.astype(int)) == -1) == 3


# Phases


def test_phases_are_means_over_steps_and_the_rest_is_told() -> None:
    lines = [step_line(10), validation_line(10), step_line(40, made=30, **{"phase/encoder": 1.5})]
    found = phases_of(lines)
    assert list(found)[:3] == ["agreement", "checkpoint stall", "data wait"]
    assert found["encoder"] == pytest.approx((0.1 * 10 + 1.5) / 40)
    # What a step does before its own clock starts is none of its parts.
    inside = found["data wait"] + found["encoder"] + found["decoder"]
    assert found["rest"] == pytest.approx(0.3 - inside)


def test_lines_that_do_not_say_of_how_many_steps_they_are() -> None:
    lines = [{**step_line(10)}, {**step_line(30, made=20)}]
    before = [{name: value for name, value in line.items() if name != "steps"} for line in lines]
    assert phases_of(before) == pytest.approx(phases_of(lines))


def test_no_phases_where_none_were_recorded() -> None:
    assert phases_of([{"step": 5, "step_seconds": 1.0}, validation_line(5)]) == {}


# Lines


def chart_of(run: RunFigures, name: str) -> Chart:
    (chart,) = [chart for chart in run_charts([run]) if chart.name == name]
    return chart


def drawn(chart: Chart) -> Axes:
    """Its axes, laid out as in a page."""
    figure = Figure(figsize=(WIDTH, chart.height), layout="constrained")
    axes = figure.add_subplot()
    chart.draw(axes)
    FigureCanvasAgg(figure).draw()
    return axes


def marked(line: Line2D) -> list[int]:
    """The places of its points that are seen as marks."""
    places: Any = line.get_markevery()
    return [*range(len(line.get_xydata()))] if places is None else places


def test_points_without_a_neighbour_are_marked(tmp_path: Path) -> None:
    run = read_run(told_run(tmp_path / "run", [step_line(10), validation_line(10)]), "run")
    lines = drawn(chart_of(run, "loss")).lines
    assert [marked(line) for line in lines] == [[0], [0]]
    assert all(line.get_marker() in MARKERS for line in lines)
    single = read_run(told_run(tmp_path / "single", [step_line(10)]), "single")
    assert marked(drawn(chart_of(single, "time")).lines[0]) == [0]


def test_of_many_points_those_between_gaps_are_marked() -> None:
    values = np.arange(1.0, 101.0)
    values[[0, 2, 50, 98]] = math.nan
    columns = {"a": Column(np.arange(100.0), values)}
    chart = line_chart("a", "A", "unit", {"run": columns | {"b": columns["a"]}})
    assert chart is not None
    assert [marked(line) for line in drawn(chart).lines] == [[1, 99], [1, 99]]


def test_the_highest_rate_is_shown_of_a_run_that_told_none(tmp_path: Path) -> None:
    train = {"max_steps": 100_000, "learning_rate": 1e-3, "warmup_steps": 100}
    run = read_run(told_run(tmp_path / "run", [step_line(100_000)], train=train), "run")
    chart = chart_of(run, "rate")
    assert np.nanmax(drawn(chart).lines[0].get_ydata()) == 1e-3  # type: ignore[arg-type]
    assert "run up to step 100,000: as the configuration says now." in chart.note
    assert "0.001" in [row[2] for row in chart.table.rows]
    assert all(all(row) for row in chart.table.rows)  # each known at all of these steps


def test_rates_that_were_told_are_drawn_whatever_the_configuration_says_now(tmp_path: Path) -> None:
    told = [step_line(20, learning_rate=0.5, table_learning_rate=0.25),
            step_line(30, learning_rate=0.0, table_learning_rate=0.125)]  # fmt: skip
    chart = chart_of(read_run(told_run(tmp_path / "run", told), "run"), "rate")
    assert "configuration" not in chart.note
    assert [row[1:] for row in chart.table.rows] == [["20", "0.5", "0.25"], ["30", "0", "0.125"]]
    dense, _ = drawn(chart).lines
    assert marked(dense) == [0, 1]
    assert np.isnan(dense.get_ydata()).tolist() == [False, True]  # type: ignore[arg-type]
    before = [step_line(10), *told]
    chart = chart_of(read_run(told_run(tmp_path / "before", before), "before"), "rate")
    assert "before up to step 10: as" in chart.note
    assert [row[2] for row in chart.table.rows][-2:] == ["0.5", "0"]


# Rows and colours


LONG = "a-run-with-a-very-long-name-" * 3
COVERAGE = {
    "table": "source", "uri": "file", "entries": 9, "duplicates": 0, "unreadable": 0, "words": 9,
    "tokens": 100, "found_words": {"as they are": 5}, "found_tokens": 60, "composed_words": 1,
    "composed_tokens": 10, "policy": "random",
}  # fmt: skip


def test_long_names_leave_room_for_what_is_drawn(tmp_path: Path) -> None:
    folder = told_run(tmp_path / "run", whole_course())
    for table in {table for tables in TABLE_OF_ROLE.values() for table in tables.values()}:
        (tmp_path / "run" / f"pretrained.{table}.json").write_text(json.dumps(COVERAGE))
    rows = [
        {**row, "levels": {"workers": f"{LONG}{number}"}}
        for number, row in enumerate(scaling_rows())
        if row["state"] == "done"
    ]
    study = read_study(written_study(tmp_path / "study", rows), "study")
    charts = [chart_of(read_run(folder, LONG), "coverage")]
    charts += [c for c in study_charts(study) if c.name in ("measure-bleu", "phases")]
    assert len(charts) == 3
    for chart in charts:
        axes = drawn(chart)
        assert axes.get_position().width > 0.8
        assert 40 < max(len(text.get_text()) for text in axes.texts) < 50


def test_bars_of_more_runs_than_there_are_colors_differ() -> None:
    chart = bars_of_phases("phases", {f"{run}": {"encoder": 1.0} for run in range(8)})
    assert chart is not None
    bars = [patch for patch in drawn(chart).patches if isinstance(patch, Rectangle)]
    looks = {(b.get_facecolor(), b.get_edgecolor(), b.get_linestyle()) for b in bars}
    assert len(looks) == 8


def test_every_name_is_in_the_legend_of_a_file(tmp_path: Path) -> None:
    runs = [read_run(told_run(tmp_path / name, whole_course()), name) for name in ("_a", "b")]
    charts = {chart.name: chart for chart in run_charts(runs)}
    for name in ("loss", "phases"):
        write_chart(charts[name], tmp_path)
        text = (tmp_path / f"{name}.svg").read_text()
        assert ">_a<" in text
        assert ">b<" in text


def test_what_is_ideal_is_within_the_chart(tmp_path: Path) -> None:
    rows = scaling_rows()
    for row in rows:
        if "tokens_per_second" in row:
            speed = 5e7 / row["target_words"]  # with more workers no more
            row["tokens_per_second"] = row["planned_tokens_per_second"] = speed
        elif row["state"] == "simulated":
            row["planned_tokens_per_second"] = 900.0 * row["workers"] ** 0.5
    study = read_study(written_study(tmp_path / "study", rows), "study")
    charts = {chart.name: chart for chart in study_charts(study)}
    for name in ("speed-workers", "simulated"):
        axes = drawn(charts[name])
        highest = max(max(line.get_xydata()[:, 1]) for line in axes.lines)
        assert 1e5 < highest <= axes.get_ylim()[1]


def test_what_of_a_step_is_in_no_phase_is_in_its_bar(tmp_path: Path) -> None:
    rows = scaling_rows()[:1]
    rows[0]["phases"] = {"encoder": 0.25, "rest": 0.5}
    study = read_study(written_study(tmp_path / "study", rows), "study")
    (chart,) = [chart for chart in study_charts(study) if chart.name == "phases"]
    assert chart.key[-1] == "rest"
    bars = [patch for patch in drawn(chart).patches if isinstance(patch, Rectangle)]
    assert max(bar.get_x() + bar.get_width() for bar in bars) == 750


# What is read


@pytest.mark.parametrize(
    "wrong", [None, "text", pytest.param(10**400, id="giant"), [1], True, math.nan]
)
def test_a_figure_that_is_no_number_ends_nothing(wrong: Any) -> None:
    wrongs = dict.fromkeys(
        ("time", "step_seconds", "steps", "epoch", "tokens_per_second", "phase/encoder"), wrong
    )
    lines = [
        step_line(10),
        step_line(20, **wrongs),
        step_line(30, **{"workers/own_seconds": wrong}),
        {**validation_line(30), "time": wrong},
        {"step": 30, "validation_bleu": wrong},
    ]
    (row,) = course_of(lines)
    assert (row.step, row.bleu) == (30, None)
    assert phases_of(lines)["encoder"] == pytest.approx(0.1)
    columns = columns_of(lines)
    assert columns["phase/encoder"].finite.tolist() == [1.0, 1.0]
    assert len(columns[f"workers/own_seconds{MOST}"]) == (3 if wrong == [1] else 2)


def test_a_step_that_no_float_can_be_is_damage(tmp_path: Path) -> None:
    run = told_run(tmp_path / "run", [step_line(10), {"step": 10**400}, {"step": True}])
    assert [line["step"] for line in sound_metrics(run)[0]] == [10]
    assert sound_metrics(run)[1] == 2


def test_damaged_lines_are_counted_and_a_torn_last_one_is_not(tmp_path: Path) -> None:
    run = told_run(tmp_path / "run", [step_line(10), step_line(20)])
    path = tmp_path / "run" / METRICS_NAME
    good = path.read_bytes()
    path.write_bytes(b'{"step": 5, "lo\n\xff\xfe\n[1]\n7\n{"loss": 2}\n{"step": "1"}\n' + good)
    lines, damaged = sound_metrics(run)
    assert ([line["step"] for line in lines], damaged) == ([10, 20], 6)
    path.write_bytes(good + b'{"step": 30, "lo')
    assert sound_metrics(run)[1] == 0


def test_a_page_says_what_is_not_there(tmp_path: Path) -> None:
    going = told_run(tmp_path / "going", [step_line(10), step_line(60)])
    with (tmp_path / "going" / METRICS_NAME).open("ab") as file:
        file.write(b"\x00\x01\n")
    said = " ".join(read_run(going, "going").missing)
    assert "1 line of its metrics damaged" in said
    assert "not complete: step 60 of 100, told at 2023-11-14 22:14 UTC" in said
    assert "no validation" in said
    assert "no BLEU" in said
    assert "no checkpoint" in said
    assert "not complete: step 60 of 100" in text_of(going)
    names = [chart.name for chart in run_charts([read_run(going, "going")])]
    assert "speed" in names
    assert "bleu" not in names


@pytest.mark.parametrize(
    ("train", "data", "last", "said"),
    [({}, {}, 60, ["no validation: the first is due after step 100",
                   "no BLEU: train.translate_every is 0"]),
     ({"evaluate_every": 50, "translate_every": 50}, {}, 49,
      ["no validation: the first is due after step 50", "no BLEU: the first is due after step 50"]),
     ({"evaluate_every": 50, "translate_every": 80, "neighbors_of": ["word"]}, {}, 60,
      ["no validation: none was recorded by step 60", "no BLEU: the first is due after step 80",
       "no neighbours of train.neighbors_of: the first is due after step 80"]),
     ({}, {"synthetic": None, "train": {"source": ["a"], "target": ["b"]}}, 60,
      ["no validation: there is no validation set", "no BLEU: there is no validation set"])],
)  # fmt: skip
def test_why_the_validation_set_has_no_figures(
    train: dict[str, Any], data: dict[str, Any], last: int, said: list[str], tmp_path: Path
) -> None:
    sections = {"train": {"max_steps": 100, **train}}
    if data:
        sections["data"] = {**data, "uri": str(tmp_path / "data")}
    run = told_run(tmp_path / "run", [step_line(last)], **sections)
    found = [line for line in read_run(run, "run").missing if line.startswith("no ")]
    assert found == ["no checkpoint", *said]


def test_a_run_that_has_told_nothing_yet_has_a_page(tmp_path: Path) -> None:
    run = told_run(tmp_path / "run", [])
    (tmp_path / "run" / METRICS_NAME).unlink()
    assert "no metrics yet" in text_of(run)
    assert run_charts([read_run(run, "run")]) == []


def test_a_complete_run_lacks_checkpoints_alone(tmp_path: Path) -> None:
    run = read_run(told_run(tmp_path / "run", whole_course()), "run")
    assert run.missing == ["no checkpoint"]
    (sentence,) = run.sentences
    assert sentence.translations == {50: "ein Wort 50", 100: "ein Wort 100"}
    (word,) = run.words
    assert word.neighbors[50] == [("near word", 0.5)]


def test_damaged_coverage_is_said(tmp_path: Path) -> None:
    run = told_run(tmp_path / "run", whole_course())
    (tmp_path / "run" / "pretrained.source.json").write_text('{"table": ')
    assert any(
        "pretrained.source.json cannot be read" in line for line in read_run(run, "").missing
    )


def test_wrong_samples_and_neighbours_are_left_out(tmp_path: Path) -> None:
    wrong = {"step": 100, "validation_samples": [3, {"source": 1}],
             "validation_neighbors": {"a": [3, ["b"], ["c", 0.5]]}}  # fmt: skip
    run = read_run(told_run(tmp_path / "run", [wrong]), "run")
    assert run.sentences == []
    assert run.words[0].neighbors == {100: [("c", 0.5)]}


def test_checkpoints_are_on_the_time_line(tmp_path: Path) -> None:
    vectors = torch.arange(32.0).reshape(8, 4)
    told = told_run(tmp_path / "told", [step_line(5), {**step_line(8), "time": None}])
    saved = small_run(
        tmp_path, {side: word_tokenizer(["one", "two", "three", "four"]) for side in SIDES},
        {"shared": vectors}, share="all",
    )  # fmt: skip
    Path(saved, METRICS_NAME).write_bytes(Path(told, METRICS_NAME).read_bytes())
    run = read_run(saved, "run")
    (checkpoint,) = run.checkpoints
    assert checkpoint.step == 5
    assert abs(checkpoint.time - time.time()) < 3600
    (chart,) = [chart for chart in run_charts([run]) if chart.name == "time"]
    assert [row[1:3] for row in chart.table.rows] == [
        ["first line of metrics", "5"], ["last line of metrics", "8"], ["checkpoint", "5"]
    ]  # fmt: skip
    (word,) = read_run(saved, "run", ["one"]).words
    assert len(word.neighbors[5]) == 3


def test_runs_have_short_names_that_differ() -> None:
    assert names_of(["a/x", "s3://b/y/"]) == ["x", "y"]
    assert names_of(["a/x", "b/x", "c/z"]) == ["a/x", "b/x", "z"]


# The page


def test_equal_translations_are_shown_once(tmp_path: Path) -> None:
    lines = [translation_line(step, word="w") for step in (10, 20, 30, 40)]
    for line, text in zip(lines, "abba", strict=True):
        line["validation_samples"][0]["translation"] = text
    text = text_of(told_run(tmp_path / "run", lines))
    assert re.findall(r">(step [^<]*)</th><td dir=.auto.>([ab])<", text) == [
        ("step 10", "a"), ("step 20 to 30", "b"), ("step 40", "a")
    ]  # fmt: skip


def test_text_is_escaped_wherever_it_stands() -> None:
    assert tag("p", "<b>", Markup("<i></i>"), title='"&') == (
        '<p title="&quot;&amp;">&lt;b&gt;<i></i></p>'
    )
    assert tag("p", "a\x1b[2J\n") == "<p>a\\x1b[2J\\n</p>"
    assert tag("p", "half \ud800") == "<p>half \\ud800</p>"


def test_nothing_that_is_data_is_markup(page_text: str) -> None:
    found = Elements(page_text)
    assert not {"script", "img", "b", "iframe", "object"} & {*found.names}
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert sum("<script>alert(1)" in text for text in found.texts) > 20


def test_a_page_needs_nothing_else(page_text: str) -> None:
    pointing = ("src", "href", "xlink:href")
    links = [value for name, value in Elements(page_text).attributes if name in pointing]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", page_text)


def test_every_chart_has_its_table_and_what_it_points_to(page_text: str) -> None:
    page = Elements(page_text)
    figures = page.names.count("figure")
    assert figures == page.names.count("details") > 10
    assert figures + page.names.count("line") == page.names.count("svg")  # lines are those of keys
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len({*ids})
    assert {value[1:] for name, value in page.attributes if name == "xlink:href"} <= {*ids}
    assert {*re.findall(r"url\(#(\w+)\)", page_text)} <= {*ids}


def test_several_runs_share_charts(tmp_path: Path) -> None:
    runs = [read_run(told_run(tmp_path / name, whole_course()), name) for name in ("one", "two")]
    charts = {chart.name: chart for chart in run_charts(runs)}
    assert charts["loss"].key == ["one", "two"]
    assert {row[0] for row in charts["loss"].table.rows} == {"one", "two"}
    assert charts["loss"].table.rows[0][:2] == ["one", "10"]
    assert {"phases-1", "phases-2"} <= {*charts}


def test_colors_are_those_of_the_page(page_text: str) -> None:
    charts = page_text[page_text.index("</style>") :]
    assert "stroke: var(--c0)" in charts
    assert {*re.findall(r"(?:fill|stroke): (#\w+)", charts)} == set()


def test_a_chart_is_written_as_files(tmp_path: Path) -> None:
    run = read_run(told_run(tmp_path / "run", whole_course()), "run")
    write_chart(run_charts([run])[0], tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "loss.svg").read_text()


def test_a_chart_of_a_thousand_runs_is_written_as_files(tmp_path: Path) -> None:
    """A PNG may have 2¹⁶ pixels a side, as its first bytes say."""
    chart = bars_of_phases("phases", {"run": {"encoder": 1.0}})
    assert chart is not None
    write_chart(replace(chart, height=400.0), tmp_path)
    width, height = struct.unpack(">II", (tmp_path / "phases.png").read_bytes()[16:24])
    assert width < height < 2**16


def test_a_run_is_shown_beside_its_plan_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = told_run(tmp_path / "run", whole_course())
    (chart,) = [c for c in run_charts([read_run(folder, "run", (), "cpu")]) if c.name == "phases"]
    assert list(chart.key) == ["run", "run, planned"]
    assert "Planned for cpu (" in chart.note
    found = {row[0]: row[1:3] for row in chart.table.rows}
    assert found["encoder"][0] == "100"
    config = read_run_config(folder)
    expected = plan(config, config.cluster.max_workers, load_machine("cpu"))
    assert found["encoder"][1] == number(1e3 * expected.phases["encoder"]) != "0"
    whole = sum(float(row[1].replace(",", "")) for row in found.values())
    assert whole == pytest.approx(1e3 * expected.step_seconds, rel=0.01)
    with pytest.raises(UserError, match="machine"):
        read_run(folder, "run", (), "gone")
    with pytest.raises(UserError, match="--machine: 'cpu' is not allowed: studies have plans"):
        report([written_study(tmp_path / "study")], command="", machine="cpu")


def test_of_many_translations_some_are_shown(tmp_path: Path) -> None:
    lines = [translation_line(step) for step in range(1, 2001)]
    text = text_of(told_run(tmp_path / "run", lines))
    shown = re.findall(r">step ([\d,]+)<", text)
    assert len(shown) == 60
    assert (shown[0], shown[-1]) == ("1", "2,000")
    assert "1,940 are left out" in text


def test_a_hundred_thousand_lines_of_metrics_stay_small(tmp_path: Path) -> None:
    run = read_run(told_run(tmp_path / "run", whole_course()), "run")
    steps, draw = np.arange(1.0, 100_001.0), np.random.default_rng(1)
    columns = {name: Column(steps, draw.random(len(steps))) for name in run.columns}
    long = RunFigures(**{**vars(run), "columns": columns})
    charts = run_charts([long])
    assert len(charts) >= 9
    assert len(page("", runs_sections([long], charts))) < 2**21


# Studies


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan, -1.0, 0.0])
def test_figures_that_are_none_leave_the_others_drawn(tmp_path: Path, odd: float) -> None:
    rows = scaling_rows()
    for row in (rows[0], rows[-1]):
        for field in SCHEMA:
            if pa.types.is_floating(field.type) and field.name.startswith("planned_"):
                row[field.name] = odd
        row["planned_phases"] = {"encoder": odd}
    rows[0] |= {"phases": {"encoder": odd, "lookup": 0.1}, "memory_bytes": [-1, 5],
                "measures": {"bleu": odd}}  # fmt: skip
    study = read_study(written_study(tmp_path / "study", rows), "study")
    charts = study_charts(study)
    for chart in charts:
        drawn(chart)
    assert study.done[0]["memory_bytes"] is None  # not that of worker 1 for worker 0
    sound = study_charts(read_study(written_study(tmp_path / "sound", scaling_rows()), "study"))
    assert [chart.name for chart in charts] == [chart.name for chart in sound]
    for chart, whole in zip(charts, sound, strict=True):
        if chart.name != "phases":  # has its phases in another order
            assert sum(row not in chart.table.rows for row in whole.table.rows) <= 2


def test_what_no_row_has_is_no_column_and_is_said(tmp_path: Path) -> None:
    rows = scaling_rows()
    for row in rows:
        row["validation_loss"] = None
        row["configuration"] = json.dumps({"data": {"words": {"sentences": 9}}})
    text = " ".join(study_sections(read_study(written_study(tmp_path / "bare", rows), "s"), []))
    assert ">BLEU<" not in text
    assert ">validation loss<" not in text
    assert "no BLEU: words of data.words have no text" in text
    rows[0] |= {"validation_bleu": 9.5, "configuration": None}
    text = " ".join(study_sections(read_study(written_study(tmp_path / "some", rows), "s"), []))
    assert ">BLEU<" in text
    assert "no BLEU" not in text


def test_a_planned_point_between_gaps_is_marked(tmp_path: Path) -> None:
    rows = scaling_rows()[:3]
    for row in rows[1:]:
        row["planned_tokens_per_second"] = row["planned_efficiency"] = None
    charts = {c.name: c for c in study_charts(read_study(written_study(tmp_path / "s", rows), "s"))}
    for name in ("speed-workers", "efficiency"):
        (planned,) = [line for line in drawn(charts[name]).lines if line.get_linewidth() == 0.7]
        assert marked(planned) == [0]


@pytest.mark.parametrize("fitting", [0, 1])
def test_simulated_sizes_of_which_none_fits_have_no_chart(tmp_path: Path, fitting: int) -> None:
    rows = scaling_rows()
    for row in rows:
        if row["state"] == "simulated":
            row["planned_fits"] = row["workers"] == 8 and bool(fitting)
    study = read_study(written_study(tmp_path / "study", rows), "study")
    charts = {chart.name: chart for chart in study_charts(study)}
    assert ("simulated" in charts) == bool(fitting)
    assert any("no simulated size fits" in line for line in study.missing) != bool(fitting)
    if fitting:
        assert len(charts["simulated"].table.rows) == 4
        assert drawn(charts["simulated"]).lines[0].get_xdata().tolist() == [8]  # type: ignore[union-attr]


def test_a_study_has_its_charts(tmp_path: Path) -> None:
    study = read_study(written_study(tmp_path / "study"), "study")
    charts = {chart.name: chart for chart in study_charts(study)}
    assert {*charts} == {
        "speed-workers", "step-workers", "memory-workers", "speed-vocabulary", "step-vocabulary",
        "memory-vocabulary", "efficiency", "phases", "planned-step", "planned-memory", "simulated",
        "measure-bleu",
    }  # fmt: skip
    # Strong and weak, of two vocabularies: of 1, 2 and 4 workers, the last on shared cores.
    assert len(charts["speed-workers"].key) == 4
    rows = charts["speed-workers"].table.rows
    assert rows[2][1:] == ["4", number(1000 * 4**0.8), "3,600", "yes"]
    assert [row[1] for row in charts["efficiency"].table.rows][:2] == ["1", "2"]
    assert charts["efficiency"].table.rows[1][-1] == "1"  # whose speed it is by
    assert "SIMULATED" in charts["simulated"].title
    assert "8xh100 (data sheets)" in charts["simulated"].note
    sizes = charts["simulated"].table.rows
    assert [row[1:4] for row in sizes] == [
        ["1", "no", "4,096"], ["8", "yes", "512"], ["64", "yes", "64"],
        ["4,096", "yes", "1 (uneven)"],
    ]  # fmt: skip
    with plot_into(str(tmp_path / "simulated.svg")) as axes:
        charts["simulated"].draw(axes)
        assert list(axes.lines[0].get_xdata()) == [8, 64, 4096]
    planned = charts["planned-step"].table.rows[0]
    assert planned[1:] == ["400", "500", "-20%"]  # as in a study's page


def test_runs_of_a_study_that_were_not_measured_are_named_with_the_reason(tmp_path: Path) -> None:
    study = read_study(written_study(tmp_path / "study"), "study")
    assert study.missing == [
        "workers 8, failed: failed: out of memory <b>",
        "workers 8, skipped: skipped: does not fit", "workers 8, waiting: waiting",
    ]  # fmt: skip
    assert "out of memory &lt;b&gt;" in " ".join(study_sections(study, []))


def test_a_study_is_known_by_its_folder_and_by_its_file(tmp_path: Path) -> None:
    folder = written_study(tmp_path / "study")
    assert folder_of_study(folder) == folder
    assert folder_of_study(told_run(tmp_path / "run", [])) is None
    assert folder_of_study("configs/scale/workers.yaml") == "runs/scale/workers"
    with pytest.raises(UserError, match="no results in"):
        read_study(str(tmp_path / "gone"), "gone")


def test_results_that_cannot_be_read_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, foreign, others = (Path(written_study(tmp_path / name)) for name in "abc")
    (torn / RESULTS_NAME).write_bytes(b"PAR1x")
    pq.write_table(pa.table({"state": ["done"]}), foreign / RESULTS_NAME)
    wrong = pa.table({"state": ["done"], "levels": pa.array([{}], SCHEMA.field("levels").type)})
    pq.write_table(wrong.append_column("workers", [["many"]]), others / RESULTS_NAME)
    for folder in (torn, foreign, others):
        assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"{RESULTS_NAME} of {str(folder)!r} cannot be read: " in said
        assert "dist-embed study writes it anew" in said


def test_results_of_an_earlier_version_lack_its_columns_alone(tmp_path: Path) -> None:
    folder = Path(written_study(tmp_path / "study"))
    table = pq.read_table(folder / RESULTS_NAME, use_threads=False)
    pq.write_table(table.drop_columns(["planned_phases", "seed"]), folder / RESULTS_NAME)
    study = read_study(str(folder), "study")
    assert study.done[0]["planned_phases"] is None
    assert study.done[0]["phases"]["lookup"] == 0.02
    assert "phases" in {chart.name for chart in study_charts(study)}


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["gone"], "no run in"), (["RUN", "-o", "page.pdf"], "a .html file"),
     (["RUN", "-o", "gone/page.html"], "gone does not exist"),
     (["RUN", "--charts", "gone"], "--charts: 'gone' is not allowed: no such folder")],
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    told_run(tmp_path / "RUN", whole_course())
    assert main(["report", *arguments]) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1
    assert said in found[0]
    assert not list(tmp_path.glob("*.html"))


def test_the_command_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told_run(tmp_path / "RUN", [{"step": 5, "nll": 1.0}])
    assert main(["report", "RUN"]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_page_replaces_the_one_before_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a letter, which a damaged corpus may have, is no error either."""
    monkeypatch.chdir(tmp_path)
    told_run(tmp_path / "RUN", [translation_line(100, "half \ud800", "\ud800")])
    (tmp_path / "report.html").write_text("before")
    os.link("report.html", "same_file.html")
    assert main(["report", "RUN"]) == 0
    assert "half \\ud800" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "same_file.html").read_text() == "before"


def test_words_that_no_run_has_are_refused_and_those_that_one_lacks_are_named(
    tmp_path: Path,
) -> None:
    runs = []
    for name, words in (("one", ["a", "b", "c"]), ("two", ["a", "b", "d"])):
        (tmp_path / name).mkdir()
        tokenizers = {side: word_tokenizer(words) for side in SIDES}
        vectors = {"shared": torch.arange(28.0).reshape(7, 4)}
        runs.append(small_run(tmp_path / name, tokenizers, vectors, share="all"))
    text = report(runs, command="", words=["a", "c"])
    assert "no neighbours of &#x27;c&#x27;" in text
    with pytest.raises(UserError, match="--words: 'x' is not allowed: no neighbours of 'x'"):
        report(runs, command="", words=["a", "x"])
    study = written_study(tmp_path / "study")
    with pytest.raises(UserError, match=r"--words: \['a'\] is not allowed: studies have none"):
        report([study], command="", words=["a"])


def test_what_is_named_in_two_ways_is_shown_once(tmp_path: Path) -> None:
    study = written_study(tmp_path / "study", scaling_rows()[:1])
    run = told_run(tmp_path / "run", [{"step": 5, "nll": 1.0}])
    text = report([study, f"{study}/", run, f"{run}/"], command="")
    assert text.count("<h2>Study study") == 1
    assert text.count("<h2>Course") == 1
    assert "<title>run, study</title>" in text

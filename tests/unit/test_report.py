from __future__ import annotations

import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.cli.main import main
from dist_embed.data.token_shards import SIDES
from dist_embed.errors import UserError
from dist_embed.observe.plot import plot_into
from dist_embed.report.chart import write_chart
from dist_embed.report.columns import BALANCE, MOST, Column, columns_of, places_of_extremes
from dist_embed.report.lines import number
from dist_embed.report.markup import Markup, tag
from dist_embed.report.page import page, runs_sections, study_sections
from dist_embed.report.report import report
from dist_embed.report.run_charts import run_charts
from dist_embed.report.runs import RunFigures, names_of, read_run
from dist_embed.report.studies import folder_of_study, read_study
from dist_embed.report.study_charts import study_charts
from dist_embed.run.history import phases_of
from dist_embed.run.metrics import METRICS_NAME, sound_metrics
from dist_embed.study.results import write_results
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


pytestmark = pytest.mark.timeout(400)  # a page has dozens of charts
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


# Columns


def test_figures_of_workers_become_the_most_and_how_even_they_are() -> None:
    columns = columns_of([step_line(10), step_line(20, **{"workers/rows_requested": [5, 5, 5]})])
    assert columns[f"workers/rows_requested{MOST}"].values.tolist() == [300, 5]
    assert columns[f"workers/rows_requested{BALANCE}"].values.tolist() == [1.5, 1.0]
    assert columns["workers"].values.tolist() == [2, 3]


def test_what_is_not_finite_is_a_gap_and_what_is_no_number_is_left_out() -> None:
    lines = [{"step": 1, "loss": None}, {"step": 2, "loss": 3}, {"step": 3, "loss": "x"},
             {"step": 4, "loss": math.inf}, {"step": 5, "workers/x": [1, "y"]}]  # fmt: skip
    columns = columns_of(lines)
    assert columns["loss"].steps.tolist() == [1, 2, 4]
    assert np.isnan(columns["loss"].values).tolist() == [True, False, True]
    assert not any(name.startswith("workers") for name in columns)


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=400), st.integers(4, 60)
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


def test_a_stretch_without_a_finite_value_stays_a_gap() -> None:
    values = np.arange(1000.0)
    values[300:600] = math.nan
    assert np.isnan(values[places_of_extremes(values, 20)]).any()


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


# What is read


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


def test_a_hundred_thousand_lines_of_metrics_stay_small(tmp_path: Path) -> None:
    run = read_run(told_run(tmp_path / "run", whole_course()), "run")
    steps, draw = np.arange(1.0, 100_001.0), np.random.default_rng(1)
    columns = {name: Column(steps, draw.random(len(steps))) for name in run.columns}
    long = RunFigures(**{**vars(run), "columns": columns})
    charts = run_charts([long])
    assert len(charts) >= 9
    assert len(page("", runs_sections([long], charts))) < 2**21


# Studies


def written_study(folder: Path) -> str:
    folder.mkdir()
    write_results(str(folder), scaling_rows())
    return str(folder)


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
    assert planned[1:] == ["400", "500", "+25%"]


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


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["gone"], "no run in"), (["RUN", "-o", "page.pdf"], "a .html file"),
     (["RUN", "-o", "gone/page.html"], "no such folder"),
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

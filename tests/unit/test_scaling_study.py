"""Studies of scaling, and what all studies got by them: plans, failures, one file of results."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from dist_embed.api.data import prepare
from dist_embed.cli.main import main
from dist_embed.errors import ConfigError, RunFailed, RunStopped, UserError
from dist_embed.observe.plot import INK
from dist_embed.planning import load_machine
from dist_embed.planning.page import pressures
from dist_embed.run.metrics import MetricsLog
from dist_embed.study import estimate, scaling_plot, scored
from dist_embed.study import run as study_run
from dist_embed.study.measured import figures_of
from dist_embed.study.outcome import Outcome
from dist_embed.study.plan import load_study
from dist_embed.study.planned import planned_runs
from dist_embed.study.results import SCHEMA, read_results, write_results
from dist_embed.study.run import run_study
from dist_embed.study.scaling import plan_of, set_efficiencies, simulated_rows
from dist_embed.study.scaling_page import scaling_page
from dist_embed.study.scaling_plot import draw_scaling, draw_simulated
from dist_embed.study.schema import ScalingStudy
from dist_embed.training.results import TrainResult
from tests.unit.drawn_axes import drawn_axes

ROOT = Path(__file__).parents[2]
BASE = """
run: {uri: x}
data: {words: {sentences: 40, length: 5}}
tokenizer: {vocab_size: 60}
embedding: {width: 8}
model: {width: 8, heads: 2, output: sampled, num_samples: 8}
train: {max_steps: 9, batch_tokens: 64, translate_every: 0}
cluster: {launcher: local, device: cpu, threads_per_worker: 1}
"""
MACHINE = {"cores": 2, "memory_gib": 23.0, "device": "a CPU", "platform": "p", "python": "3",
           "versions": {"torch": "9"}}  # fmt: skip
Trains = Callable[[Any], dict[str, Any]]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


def study_of(folder: Path, **changes: Any) -> ScalingStudy:
    base = folder / "base.yaml"
    base.write_text(BASE)
    values = {
        "kind": "scaling", "title": "Workers", "question": "How fast?", "base": str(base),
        "folder": str(folder / "study"), "grid": {"workers": [1, 2, 4]},
    } | changes  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    found = load_study(path)
    assert isinstance(found, ScalingStudy)
    return found


class Stand:
    """A stand-in for `train`, and whom it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.errors: dict[int, Exception] = {}

    def __call__(self, config: Any, on_event: Any) -> dict[str, Any]:
        workers = config.cluster.num_workers
        self.asked.append(config.run.uri)
        if workers in self.errors:
            raise self.errors[workers]
        figures = {"tokens_per_second": 100.0 * workers**0.5, "steps": 9, "phases": {"lookup": 0.1}}
        return {"measures": {}, "validations": [], "machine": MACHINE, "figures": figures}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, cores: None) -> Stand:
    made = Stand()
    monkeypatch.setattr(study_run, "train_and_measure", made)
    monkeypatch.setattr(study_run, "prepare", lambda config, **how: None)
    return made


def run(study: ScalingStudy) -> list[Outcome]:
    return run_study(study, lambda event: None)


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    study = study_of(
        tmp_path, grid={"workers": [2, 4], "vocabulary": [50, 70], "width": [8, 16], "batch": [64],
                        "output": ["exact"]}, scaling=["strong", "weak"], seeds=[1, 2],
    )  # fmt: skip
    runs = planned_runs(study)
    assert len(runs) == 2 * 2 * 2 * 2 * 2
    last = runs[-1]
    assert dict(last.combination) == {
        "workers": "4", "scaling": "weak", "vocabulary": "70", "width": "16", "batch": "64",
        "output": "exact",
    }  # fmt: skip
    config = last.config
    assert (config.cluster.num_workers, config.tokenizer.vocab_size) == (4, 70)
    assert (config.embedding.width, config.model.width, config.model.output) == (16, 16, "exact")
    assert config.train.batch_tokens == 128  # twice as many workers as the fewest
    assert (last.seed, config.run.seed) == (2, 2)
    # Data do not depend on workers, width, batch, output or seed.
    assert len({one.config.data.uri for one in runs}) == 2
    # Where they begin, strong and weak scaling are one run.
    assert len({one.name for one in runs}) == 2 * 2 * 2 * (1 + 2)


def test_what_is_done_is_not_done_again(tmp_path: Path, stand: Stand) -> None:
    study = study_of(tmp_path, scaling=["strong", "weak"])
    stand.errors[2] = RunStopped("asked to")
    with pytest.raises(RunStopped):
        run(study)
    assert [row["state"] for row in read_results(study.folder)] == [
        "done", "done", "waiting", "waiting", "waiting", "waiting"
    ]  # fmt: skip
    stand.errors.clear()
    first = run(study)
    assert len(stand.asked) == len(set(stand.asked)) + 1 == 6  # the one that was stopped
    assert run(study) == first
    assert len(stand.asked) == 6
    assert [row["state"] for row in read_results(study.folder)] == ["done"] * 6


def test_a_failure_is_recorded_and_stops_no_other(tmp_path: Path, stand: Stand) -> None:
    study = study_of(tmp_path)
    stand.errors[2] = RunFailed("worker 1:\nTraceback\n  at x\nValueError: no\n")
    outcomes = run(study)
    rows = read_results(study.folder)
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert rows[1]["reason"] == str(stand.errors[2])
    assert rows[1]["tokens_per_second"] is None
    assert outcomes[1].lacks == "2, strong, seed 1: failed: ValueError: no"
    assert len(stand.asked) == 3
    stand.errors.clear()
    run(study)
    assert len(stand.asked) == 4  # it alone is tried again
    assert [row["state"] for row in read_results(study.folder)] == ["done"] * 3


def test_results_are_in_the_file_before_a_run_begins(tmp_path: Path, stand: Stand) -> None:
    """A call that is stopped in its first run loses none of those of earlier ones."""
    study = study_of(tmp_path, grid={"workers": [1, 2, 4], "width": [8]})
    stand.errors[2] = RunFailed("no")
    run(study)
    stand.errors[1] = RunStopped("asked to")
    for first in (tmp_path / "study" / "results").glob("1_8_*.json"):
        first.unlink()  # is to be made again
    for states in (["waiting", "failed", "done"], ["waiting", "waiting", "done"]):
        with pytest.raises(RunStopped):
            run(study)
        rows = read_results(study.folder)
        assert [row["state"] for row in rows] == states
        assert rows[1]["reason"] == ("no" if "failed" in states else None)
        assert rows[2]["tokens_per_second"] == 200
        (tmp_path / "study" / "results.parquet").write_text("torn")


def test_the_plan_of_a_result_is_the_one_before_its_run(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, grid={"workers": [1]})
    asked: list[Any] = []
    estimated = estimate.estimated

    def planned(step: Any) -> Any:
        asked.append(len(stand.asked))
        return dataclasses.replace(estimated(step), step_seconds=1.0 + len(stand.asked))

    monkeypatch.setattr(estimate, "estimated", planned)
    for _ in range(2):
        run(study)
        assert [row["planned_step_seconds"] for row in read_results(study.folder)] == [1.0]
    assert {*asked} == {0}  # what is settled is not planned again


def test_a_plan_that_fits_is_made_without_remedies_and_the_machine_read_once(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[Any]] = {"remedies": [], "load_machine": []}
    for name, seen in calls.items():
        made = getattr(estimate, name)
        monkeypatch.setattr(
            estimate, name,
            lambda *given, made=made, seen=seen: (seen.append(given[0]), made(*given))[1],
        )  # fmt: skip
    study = study_of(tmp_path, grid={"vocabulary": [60, 2_000_000_000]})
    run(study)
    assert [row["state"] for row in read_results(study.folder)] == ["done", "skipped"]
    assert calls["load_machine"] == ["cpu"]
    assert [found.fits for found in calls["remedies"]] == [False] * 2  # at the start, and its turn


def test_results_of_an_earlier_version_have_a_page(tmp_path: Path, stand: Stand) -> None:
    """Which named a balance otherwise, and kept less of a plan, or none: what is lacking is left
    out, and nothing of a later plan is put beside it.
    """
    study = study_of(tmp_path, grid={"workers": [1, 2]})
    run(study)
    kept = sorted((tmp_path / "study" / "results").glob("*.json"))
    for path in kept:
        made = json.loads(path.read_text())
        made["figures"] |= {"rows_requested": [10.0, 30.0], "rows_balance": 1.5,
                            "step_seconds_p50": 0.5}  # fmt: skip
        for name in ("planned_source", "planned_refused", "planned_served_balance"):
            del made["planned"][name]
        path.write_text(json.dumps(made))

    def page() -> str:
        study_of(tmp_path, grid={"workers": [1, 2]})
        assert main(["study", str(tmp_path / "study.yaml")]) == 0
        return (tmp_path / "study" / "page.md").read_text()

    told = page()
    assert told.count("20 (most ÷ mean 1.50)") == 2
    assert "machine file `cpu` (not said)" in told
    for path in kept:
        made = json.loads(path.read_text())
        del made["planned"]
        path.write_text(json.dumps(made))
    told = page()
    assert "## Planned" not in told
    assert "100.0 / –" in told
    assert "grey: planned" not in (tmp_path / "study" / "page.svg").read_text()
    assert len(stand.asked) == 2
    rows = read_results(study.folder)
    assert [row["planned_step_seconds"] for row in rows] == [None, None]
    assert main(["report", study.folder, "-o", str(tmp_path / "report.html")]) == 0


@pytest.mark.parametrize(("device", "threads"), [("a GPU", None), ("a processor", 32)])
def test_threads_of_an_earlier_version_are_by_the_device_of_the_row(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch, device: str, threads: int | None
) -> None:
    """At whose making none were told: the stand-in's processor is another than this machine's."""
    monkeypatch.setattr(study_run, "device_name", lambda _: "a processor")
    changes = {"cluster.threads_per_worker": 0, "cluster.device": "auto"}
    study = study_of(tmp_path, set=changes, grid={"workers": [2]})
    run(study)
    (path,) = (tmp_path / "study" / "results").glob("*.json")
    made = json.loads(path.read_text())
    made["machine"] |= {"device": device, "cores": 64}
    path.write_text(json.dumps(made))
    run(study)
    (row,) = read_results(study.folder)
    assert (row["threads_per_worker"], row["device"]) == (threads, device)
    assert row["oversubscribed"] == (None if threads is None else False)


def test_every_kept_plan_is_of_prepared_data(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the first run, before whose turn there were none, too."""
    monkeypatch.setattr(study_run, "prepare", prepare)
    study = study_of(tmp_path, grid={"vocabulary": [60, 70], "width": [8, 16]})
    run(study)
    plans = [json.loads(row["plan"]) for row in read_results(study.folder)]
    assert [plan["prepared"] for plan in plans] == [True] * 4


def test_threads_and_cores_are_those_of_the_machine_that_measured(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, set={"cluster.threads_per_worker": 0})
    monkeypatch.setitem(MACHINE, "cores", 64)
    run(study)
    kept = [*(tmp_path / "study" / "results").glob("*.json")]
    for say in (True, False):  # as earlier versions did not
        rows = read_results(study.folder)
        assert [row["threads_per_worker"] for row in rows] == [64, 32, 16]
        assert [row["oversubscribed"] for row in rows] == [False] * 3
        assert rows[2]["efficiency"] == pytest.approx(4**0.5)
        for path in kept if say else ():
            made = json.loads(path.read_text())
            del made["figures"]["threads_per_worker"], made["figures"]["oversubscribed"]
            path.write_text(json.dumps(made))
        run(study)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (pa.ArrowInvalid("torn"), "pyarrow.lib.ArrowInvalid: torn"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (KeyError("x"), "KeyError: 'x'"),
        (RunFailed("worker 1:\nValueError: no"), "ValueError: no"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_no_error_of_a_run_ends_others(
    tmp_path: Path, stand: Stand, error: Exception, said: str
) -> None:
    study = study_of(tmp_path)
    stand.errors[1] = error
    outcomes = run(study)
    assert [outcome.row["state"] for outcome in outcomes] == ["failed", "done", "done"]
    assert outcomes[0].lacks == f"1, strong, seed 1: failed: {said}"
    assert outcomes[0].row["planned_step_seconds"] > 0


def test_what_does_not_fit_is_skipped_and_listed(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "available_bytes", lambda: 3 * 2**29)
    study = study_of(tmp_path, grid={"vocabulary": [60, 20_000_000]})
    outcomes = run(study)
    rows = read_results(study.folder)
    assert [row["state"] for row in rows] == ["done", "skipped"]
    assert [row["planned_fits"] for row in rows] == [True, False]
    assert rows[1]["reason"].startswith("does not fit by its plan: memory: ")
    assert "a node has 1.5 GiB" in rows[1]["reason"]
    assert len(stand.asked) == 1
    page = scaling_page(
        study, outcomes, [], command="x", plot_name=None, simulated_plot_name=None
    )  # fmt: skip
    assert "- 20000000, seed 1: skipped: does not fit by its plan" in page
    assert "fficiency" not in page  # there is one number of workers
    monkeypatch.setattr(estimate, "available_bytes", lambda: 2**40)
    run(study)
    assert len(stand.asked) == 2


def test_a_bound_of_the_vocabulary_skips_nothing(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text may have fewer words: it is prepared, and looked at."""
    monkeypatch.setattr(estimate, "available_bytes", lambda: 2**30)
    prepared: list[Any] = []
    monkeypatch.setattr(study_run, "prepare", lambda config, **_: prepared.append(config))
    study = study_of(
        tmp_path, set={"data.words": None, "data.synthetic": {}}, grid={"vocabulary": [20_000_000]}
    )
    run(study)
    assert len(prepared) == 1
    assert stand.asked == []


def test_plans_of_a_named_machine_decide(tmp_path: Path, stand: Stand) -> None:
    study = study_of(tmp_path, machine="cpu", grid={"vocabulary": [60, 2_000_000_000]})
    run(study)
    rows = read_results(study.folder)
    assert [row["state"] for row in rows] == ["done", "skipped"]
    assert {row["planned_machine"] for row in rows} == {"cpu"}


@pytest.mark.usefixtures("cores")
def test_efficiency_is_by_the_fewest_workers(tmp_path: Path, stand: Stand) -> None:
    """By hand: 100, 141 and 200 tokens/s of 1, 2 and 4 workers."""
    study = study_of(tmp_path, scaling=["strong", "weak"])
    run(study)
    rows = read_results(study.folder)
    assert [row["workers"] for row in rows] == [1, 1, 2, 2, 4, 4]
    found = [row["efficiency"] for row in rows]
    assert found[:4] == pytest.approx([1, 1, 0.7071, 0.7071], rel=1e-4)
    assert found[4:] == [None, None]  # of two cores
    assert [row["oversubscribed"] for row in rows] == [False] * 4 + [True] * 2
    assert all(row["planned_efficiency"] > 0 for row in rows[:4])


def test_efficiency_counts_threads_and_like_levels_alone() -> None:
    def row(workers: int, speed: float, threads: int = 1, **more: Any) -> dict[str, Any]:
        return {"workers": workers, "threads_per_worker": threads, "tokens_per_second": speed,
                "levels": {"workers": str(workers), "width": more.get("width", "8")},
                "state": "done", "seed": more.get("seed", 1)}  # fmt: skip

    rows = [
        row(2, 30.0), row(1, 20.0, threads=2), row(2, 50.0, width="16"), row(4, 50.0, width="16"),
        row(4, 30.0, seed=2), row(8, 0.0),
    ]  # fmt: skip
    set_efficiencies(rows)
    assert [one["efficiency"] for one in rows] == [1.5, 1.0, 1.0, 0.5, 1.0, None]
    assert [one["efficiency_base"] for one in rows] == [1, 1, 2, 2, 4, None]


def test_both_efficiencies_are_by_a_size_that_can_be() -> None:
    """Of runs the fewest workers that were measured, of simulated sizes the fewest that fit."""

    def row(workers: int, state: str, fits: bool | None = True, **more: Any) -> dict[str, Any]:
        measured = {"tokens_per_second": 30.0 * workers} if state == "done" else {}
        return {"workers": workers, "levels": {"workers": str(workers)}, "state": state,
                "planned_fits": fits, "planned_tokens_per_second": 10.0 * workers**0.5,
                **measured, **more}  # fmt: skip

    runs = [
        row(1, "failed"), row(2, "skipped", fits=False), row(4, "done", oversubscribed=True),
        row(8, "done", fits=None), row(32, "done"), row(64, "waiting"),
    ]  # fmt: skip
    sizes = [row(1, "simulated", fits=False), row(8, "simulated"), row(32, "simulated")]
    set_efficiencies([*runs, *sizes])
    assert [one["efficiency_base"] for one in runs] == [None, None, None, 8, 8, None]
    assert [one["efficiency"] for one in runs] == [None, None, None, 1.0, 1.0, None]
    assert [one["planned_efficiency"] for one in runs] == [None, None, None, 1.0, 0.5, None]
    assert [one["efficiency_base"] for one in sizes] == [None, 8, 8]
    assert [one["planned_efficiency"] for one in sizes] == [None, 1.0, 0.5]
    runs[0] |= row(1, "done")  # tried again: the others are by it now
    set_efficiencies([*runs, *sizes])
    assert [one["efficiency_base"] for one in runs] == [1, None, None, 1, 1, None]


def test_figures_are_those_of_the_metrics(tmp_path: Path) -> None:
    with MetricsLog(str(tmp_path), 0) as log:
        for step, seconds, wait in ((2, 9.0, 5.0), (4, 0.2, 0.04), (8, 0.4, 0.16)):
            count = 2 if step < 8 else 4
            log.write(
                step, nll=5.0 - step / 10, step_seconds=seconds, tokens_per_second=10 / seconds,
                **{"phase/data_wait": wait, "phase/agreement": 0.0, "phase/checkpoint_stall": 0.0,
                   "workers/own_seconds": [0.1 * count, 0.3 * count],
                   "workers/rows_requested": [10 * count, 30 * count],
                   "workers/memory_bytes": [100 - step, 100 + step]},
            )  # fmt: skip
        log.write(8, validation_loss=4.0)
        log.write(8, validation_bleu=3.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = figures_of(lines)
    # Of the second and third line: 2 steps of 0.2 s and 4 of 0.4 s, 2 s in all.
    assert found["tokens_per_second"] == pytest.approx((50 + 25) / 2)
    assert found["step_seconds_p50"] == pytest.approx(0.3)
    assert found["step_seconds_max"] == pytest.approx(0.4)
    assert found["phases"]["data wait"] == pytest.approx(0.2 / 6)
    assert found["data_wait_share"] == pytest.approx(0.1)
    assert found["exchange_share"] == pytest.approx(1 - 6 * 0.2 / 2)
    assert found["rows_requested"] == [10, 30]
    assert found["requested_balance"] == 1.5
    assert found["memory_bytes"] == [96, 108]
    assert (found["steps"], found["training_loss"]) == (8, 4.2)
    assert (found["validation_loss"], found["validation_bleu"]) == (4.0, 3.0)
    assert figures_of([]) == {}
    assert figures_of(lines[:1])["step_seconds_p50"] == 9.0  # there is no other


ODD: list[Any] = [None, "a", [], [None], ["a"], {}, math.nan, 10**30, True]


@pytest.mark.parametrize("odd", ODD)
def test_a_damaged_line_leaves_the_others_their_figures(odd: Any) -> None:
    lines = [logged(step, 0.5) for step in (2, 4, 6, 8)]
    lines += [{"step": 8, "validation_loss": 3.0}]
    sound = figures_of(lines)
    for key in [*lines[2], "validation_loss", "validation_bleu", "nll"]:
        if key != "step":  # by which a line is one
            damaged = [*lines[:2], {**lines[2], key: odd}, *lines[3:]]
            found = figures_of(damaged)
            assert found["steps"] == 8
            assert found["tokens_per_second"] > 0
            assert found["rows_requested"] == sound["rows_requested"]
            assert found["validation_loss"] == 3.0
            assert scored.speed_of(damaged) == scored.speed_of(lines)


@pytest.mark.parametrize(("peak", "held"), [(90, [90, 8]), (5, [7, 8])])
def test_memory_counts_until_a_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: int, held: list[int]
) -> None:
    """The last checkpoint is made behind the last log line."""
    (planned_run,) = planned_runs(study_of(tmp_path, grid={"workers": [2]}))
    config = planned_run.config
    result = TrainResult(config.run.uri, "", 2, 0, False, 0, peak)
    with MetricsLog(config.run.uri, 0) as log:
        line = logged(2, 0.5, **{"workers/own_seconds": [1.0, 1.0], "workers/memory_bytes": [7, 8],
                                 "workers/rows_requested": [1, 1]})  # fmt: skip
        log.write(line.pop("step"), **line)
    monkeypatch.setattr(scored, "train", lambda config, **how: result)
    data = SimpleNamespace(vocabulary_size={"source": 9})
    monkeypatch.setattr(scored.PreparedData, "read", lambda folder: data)
    figures = scored.train_and_measure(config, lambda event: None)["figures"]
    assert figures["memory_bytes"] == held
    assert figures["source_words"] == 9


def logged(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    """A log line of two steps of ten tokens in all."""
    return {
        "step": step, "steps": 2, "step_seconds": seconds, "tokens_per_second": 5 / seconds,
        "phase/agreement": 0.0, "phase/checkpoint_stall": 0.0, "phase/lookup": seconds,
        "workers/own_seconds": [seconds], "workers/rows_requested": [8],
        "workers/memory_bytes": [7], **more,
    }  # fmt: skip


def test_the_first_line_after_each_start_does_not_count() -> None:
    lines = [
        logged(2, 9.0, resumed_at=0), logged(4, 0.2), logged(6, 7.0, resumed_at=4),
        logged(8, 0.2), logged(10, 8.0, resumed_at=8),
    ]  # fmt: skip
    found = figures_of(lines)
    assert found["step_seconds_max"] == pytest.approx(0.2)
    assert found["tokens_per_second"] == pytest.approx(25)
    assert found["phases"]["lookup"] == pytest.approx(0.1)
    assert found["steps"] == 10
    assert figures_of(lines[:1])["step_seconds_max"] == 9.0  # there is no other


def test_a_step_is_from_one_to_the_next_as_in_a_plan() -> None:
    """By hand: 0.2 and 0.4 s, 10 and 20 ms of agreement, and of 0.4 s of stalls a quarter."""
    lines = [
        logged(2, 9.0),
        logged(4, 0.2, **{"phase/agreement": 0.02, "phase/checkpoint_stall": 0.4}),
        logged(6, 0.4, **{"phase/agreement": 0.04}),
    ]
    found = figures_of(lines)
    assert found["step_seconds_p50"] == pytest.approx((0.31 + 0.52) / 2)
    assert found["tokens_per_second"] == pytest.approx((5 / 0.31 + 5 / 0.52) / 2)
    assert sum(found["phases"].values()) == pytest.approx((0.31 + 0.52) / 2)


def test_the_file_of_results_has_its_columns(tmp_path: Path) -> None:
    row = {"state": "done", "levels": {"a": "b"}, "phases": {"lookup": 0.5}, "memory_bytes": [1, 2]}
    write_results(str(tmp_path), [row, {"state": "simulated", "levels": {}}])
    first, second = read_results(str(tmp_path))
    assert list(first) == SCHEMA.names
    assert {name: value for name, value in first.items() if value is not None} == row
    assert second["phases"] is None
    assert all(field.metadata[b"meaning"] for field in SCHEMA)


def test_simulated_sizes_are_planned_and_wait_for_the_most_asked(
    tmp_path: Path, stand: Stand
) -> None:
    simulate = {"workers": [1, 8, 64], "machine": "8xh100", "set": {"tokenizer.vocab_size": 10**6}}
    study = study_of(tmp_path, simulate=simulate, scaling=["strong", "weak"])
    run(study)
    found = [row for row in read_results(study.folder) if row["state"] == "simulated"]
    assert [(row["levels"]["scaling"], row["workers"]) for row in found] == [
        (kind, workers) for kind in ("strong", "weak") for workers in (1, 8, 64)
    ]
    assert [row["batch_tokens"] for row in found] == [64, 64, 64, 64, 512, 4096]
    assert {row["target_words"] for row in found} == {10**6}
    assert [row["uneven"] for row in found] == [True] * 6  # sentences may have 256 tokens
    assert found[0]["planned_efficiency"] == 1
    name = load_machine("8xh100").name
    for row in found:
        assert row["planned_machine"] == name
        assert row["tokens_per_second"] is None
        assert sum(row["planned_phases"].values()) == pytest.approx(row["planned_step_seconds"])
        assert json.loads(row["plan"])["step_seconds"] == row["planned_step_seconds"]
        assert row["seed"] is None
    assert found[2]["planned_served_balance"] > 1
    page = scaling_page(
        study, [], simulated_rows(study), command="x", plot_name=None, simulated_plot_name="s.svg"
    )
    assert "**Nothing below was measured on so many workers.**" in page
    assert "machine file `8xh100` (data sheets and assumptions, nothing measured)" in page
    assert "64 (uneven)" in page
    assert "*Uneven*: fewer tokens than" in page
    assert "times the tokens/s" in page
    # 8 negatives, whatever the size; what a checkpoint comes to of all nodes together.
    assert "| negatives a step |" in page
    assert "| 8 |" in page
    one = plan_of(found[2]).checkpoint
    assert f"| {one.seconds:,.1f} ({one.bytes / one.seconds / 1e9:,.0f}) |" in page
    most = plan_of(found[2])
    for line in (*pressures(most), most.not_built[0].change):
        assert line in page, line
    plot = tmp_path / "s.svg"
    draw_simulated(study, found, str(plot))
    assert "SIMULATED, not measured" in plot.read_text()
    assert "data sheets and assumptions" in plot.read_text()
    assert "8xh100" in plot.read_text()


def test_simulated_sizes_of_cpus_share_no_cores_and_of_gpus_may_have_a_batch_of_their_own(
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path, simulate={"workers": [1, 2, 4], "machine": "cpu"})
    rows = simulated_rows(study)
    set_efficiencies(rows)
    assert [row["oversubscribed"] for row in rows] == [False, False, True]  # of two cores
    assert [row["planned_efficiency"] is None for row in rows] == [False, False, True]
    assert [row["threads_per_worker"] for row in rows] == [1, 1, 1]
    simulate = {"workers": [2, 8], "machine": "8xh100", "tokens_per_worker": 4096}
    study = study_of(tmp_path, simulate=simulate, scaling=["strong", "weak"])
    assert [row["batch_tokens"] for row in simulated_rows(study)] == [64, 64, 8192, 32768]


def test_sizes_that_do_not_fit_are_in_the_table_alone(tmp_path: Path, stand: Stand) -> None:
    simulate = {
        "workers": [1, 64],
        "machine": "8xh100",
        "set": {
            "tokenizer.vocab_size": 10**8,
            "embedding.width": 512,
            "model.width": 512,
            "embedding.memory": "device",
        },
    }
    study = study_of(tmp_path, simulate=simulate)
    run(study)
    one, many = (row for row in read_results(study.folder) if row["state"] == "simulated")
    assert (one["planned_fits"], one["efficiency_base"]) == (False, None)
    assert (many["planned_fits"], many["planned_efficiency"]) == (True, 1.0)
    page = scaling_page(
        study, [], [one, many], command="x", plot_name=None, simulated_plot_name=None
    )
    assert "| 100% (base) |" in page
    assert "(does not fit) |" in page
    plot = tmp_path / "s.svg"
    assert draw_simulated(study, [one, many], str(plot))
    assert "what does not fit is left out" in plot.read_text()
    assert not draw_simulated(study, [one], str(tmp_path / "none.svg"))


def test_the_page_and_its_plot(tmp_path: Path, stand: Stand, capsys: Any) -> None:
    study = study_of(tmp_path)
    stand.errors[4] = UserError("memory gone")
    assert main(["study", str(tmp_path / "study.yaml")]) == 1
    page = (tmp_path / "study" / "page.md").read_text()
    said = capsys.readouterr()
    assert "1 of 3 runs failed" in said.err
    assert "4, strong, seed 1: failed: memory gone" in said.out
    for part in ("| workers | target tokens/s | efficiency |",
                 "| 1 | 100 | 100% (base) |", "| 2 | 141 | 71% |", "## Planned",
                 "- 4, strong, seed 1: failed: memory gone", "![target tokens a second](page.svg)",
                 "lookup", "2 cores"):  # fmt: skip
        assert part in page, part
    assert "Simulated" not in page
    plot = (tmp_path / "study" / "page.svg").read_text()
    assert "ideal" in plot
    assert "open" not in plot  # the run on shared cores failed
    assert "no BLEU: words of data.words have no text" in page
    assert not draw_scaling(study, [], str(tmp_path / "none.svg"))


def test_shared_cores_are_open_marks_and_single_plans_are_seen(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path)
    run(study)
    rows = read_results(study.folder)
    rows[1]["planned_tokens_per_second"] = None
    plots = drawn_axes(monkeypatch, scaling_plot)
    draw_scaling(study, rows, str(tmp_path / "x.svg"))
    (axes,) = plots
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() for line in marks] == [INK, INK, "white"]
    assert "open: more threads than cores" in axes.get_title(loc="left")
    (planned_line,) = [line for line in axes.lines if line.get_marker() == "."]
    assert planned_line.get_markevery() == [0, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": {}}, "grid: empty; give one of workers, vocabulary, width, batch, output"),
        ({"grid": {"width": [8, 8]}}, r"grid.width: \[8, 8\] has one twice"),
        ({"grid": {"width": [8]}, "scaling": ["weak"]}, "scaling: 'weak' is not allowed without"),
        ({"set": {"cluster.num_workers": 3}}, "set.cluster.num_workers: not allowed beside grid"),
        ({"set": {"run.seed": 3}}, "set.run.seed: not allowed: the study sets it"),
        ({"grid": {"width": [8]}, "simulate": {"workers": [1], "machine": "cpu"}},
         "simulate: not allowed without grid.workers"),
        ({"grid": {"workers": [1]}, "simulate": {"workers": [1], "machine": "cpu",
                                                 "set": {"cluster.device": "cuda"}}},
         "simulate.set.cluster.device: not allowed: the study sets it"),
        ({"simulate": {"workers": [1], "machine": "cpu", "set": {"run.seed": 3}}},
         "simulate.set.run.seed: not allowed: the study sets it"),
        ({"simulate": {"workers": [1], "machine": "cpu", "tokens_per_worker": 9}},
         "simulate.tokens_per_worker: not allowed without scaling"),
        ({"factors": []}, "factors: unknown key"),
        ({"kind": "scale"}, "kind: 'scale' is not allowed: training or scaling"),
        ({"grid": {"workers": [0]}}, "grid.workers.0: 0 is not allowed"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study_of(tmp_path, **changes)


def test_more_workers_than_rows_are_refused_before_anything(tmp_path: Path, stand: Stand) -> None:
    study_of(tmp_path, grid={"workers": [1, 64]})
    assert main(["study", str(tmp_path / "study.yaml")]) == 2
    assert stand.asked == []


def test_a_large_grid_is_asked_about(tmp_path: Path, stand: Stand, capsys: Any) -> None:
    grid = {"batch": list(range(64, 64 + 1001))}
    study_of(tmp_path, grid=grid)
    assert main(["study", str(tmp_path / "study.yaml")]) == 2
    assert "1,001 runs are not allowed without --yes: at most 1,000" in capsys.readouterr().err
    # Counted, not made up, which would take all memory.
    many = list(range(8, 8008, 8))
    study_of(tmp_path, grid={"batch": many, "width": many, "workers": many})
    assert main(["study", str(tmp_path / "study.yaml")]) == 2
    assert "1,000,000,000 runs are not allowed" in capsys.readouterr().err


def test_a_folder_of_another_study_is_refused(
    tmp_path: Path, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    run(study_of(tmp_path))
    study_of(tmp_path, title="Others")
    assert main(["study", str(tmp_path / "study.yaml")]) == 2
    assert "has the results of another study, 'Workers' (kind: scaling)" in capsys.readouterr().err
    assert len(stand.asked) == 3


STORED = sorted({*ROOT.glob("configs/scale/*.yaml")} - {ROOT / "configs/scale/base.yaml"})


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.name)
def test_the_stored_studies_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(path)
    assert isinstance(study, ScalingStudy)
    assert planned_runs(study)
    if study.simulate:
        few = study.simulate.model_copy(update={"workers": [max(study.simulate.workers)]})
        assert simulated_rows(study.model_copy(update={"simulate": few}))

"""What a machine is measured by, with runs that are made up: as another machine file says."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest

from dist_embed.bench import calibrate as calibrating
from dist_embed.bench.calibrate import calibrate, machine_yaml
from dist_embed.bench.plan_check import (
    CASES,
    compare,
    comparison_table,
    verdict,
)
from dist_embed.bench.planned_runs import Case, Measured, Runs, case_config
from dist_embed.cli.main import main
from dist_embed.planning import load_machine, machine_from_yaml, plan
from dist_embed.planning.machine import Collective
from tests.unit.planned import machine

TRUTH = machine(process_mib=321.0, operation_us=5.0)
BARE = {"products", "memory_gb_s", "gather", "operation_us"}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds: dict[str, Any] = TRUTH.model_dump(include=BARE)
    link = TRUTH.within_node.model_dump(exclude={"peer_us"})
    exchanges = [{"kind": kind, "workers": 2, **link} for kind in get_args(Collective)]
    monkeypatch.setattr(
        calibrating, "measure_speeds", lambda *given: {**speeds, "exchanges": exchanges}
    )
    monkeypatch.setattr(calibrating, "measure_store", lambda store: TRUTH.store.model_dump())
    monkeypatch.setattr(calibrating.os, "sched_getaffinity", lambda pid: range(TRUTH.cores))

    def config(runs: Runs, case: Case) -> Any:
        return case_config(case, "/nowhere/run", "/nowhere/data")

    def measured(runs: Runs, case: Case) -> Measured:
        found = plan(config(runs, case), case.workers, TRUTH)
        return Measured(found.step_seconds, found.phases, found.memory_bytes)

    monkeypatch.setattr(Runs, "config", config)
    monkeypatch.setattr(Runs, "measured", measured)


def test_runs_tell_what_a_process_takes(made_up: None) -> None:
    found = calibrate("/nowhere", "/nowhere", [2], lambda line: None)
    assert found.process_mib == pytest.approx(321, abs=0.1)
    assert found.source.startswith("measured by calibrate on 64 cores of ")
    assert found.source.endswith(f", {date.today()}")
    # Which none has measured.
    assert found.thread_gflops is None
    assert "thread_gflops" not in machine_yaml(found, "mine", "today")
    for case in CASES:
        if case.workers > 2:
            continue
        config = case_config(case, "/nowhere/run", "/nowhere/data")
        told, there = (plan(config, case.workers, one) for one in (found, TRUTH))
        assert told.step_seconds == pytest.approx(there.step_seconds, rel=1e-3)
        assert told.memory_bytes == pytest.approx(there.memory_bytes, rel=1e-3)


def test_a_process_takes_no_less_than_nothing(
    made_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all is counted a little too high."""
    monkeypatch.setattr(Runs, "measured", lambda runs, case: Measured(0.1, {}, memory_bytes=1))
    assert calibrate("/nowhere", "/nowhere", [2], lambda line: None).process_mib == 0


def test_what_each_peer_adds_is_told_by_few_and_many() -> None:
    exchanges = [
        {"kind": kind, "workers": workers, "latency_us": us}
        for kind, workers, us in (
            ("all_to_all", 4, 340.0), ("all_to_all", 2, 300.0), ("all_reduce", 2, 900.0),
        )
    ]  # fmt: skip
    assert calibrating._peer_us(exchanges) == 20
    assert calibrating._peer_us(exchanges[1:]) == 0


def test_a_machine_file_is_read_as_it_was_written() -> None:
    text = machine_yaml(TRUTH, "mine", "today")
    first, second, _ = text.split("\n", 2)
    assert first.startswith("# 64 cores of ")
    assert first.endswith(". All figures measured by calibrate:")
    assert second == "# today"
    found = machine_from_yaml(text, "mine.yaml")
    assert found == TRUTH.model_copy(update={"name": "mine"})


def test_plans_beside_runs(made_up: None) -> None:
    compared = compare(TRUTH, "/nowhere", 2, [2], lambda line: None)
    assert {one.case.workers for one in compared} == {1, 2}
    header, rows = comparison_table(compared)
    assert all(len(row) == len(header) for row in rows)
    said = verdict(compared)[0]
    assert said.startswith("step time: median error 0%")
    slow = compare(machine(process_mib=321.0, operation_us=5000.0), "", 1, [2], print)
    assert all(one.time_error > 0 for one in slow)
    wrong = compare(TRUTH.model_copy(update={"process_mib": 5000.0}), "", 1, [2], print)
    assert " !" in comparison_table(wrong)[1][0][-1]
    assert verdict(wrong)[1].startswith(f"memory: {len(wrong)} of {len(wrong)} beyond")


def test_the_commands_write_what_was_found(
    made_up: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibrating, "calibrate", lambda *given: TRUTH)
    mine, figures = tmp_path / "mine.yaml", tmp_path / "plan.json"
    assert main(["bench", "calibrate", "-o", str(mine)]) == 0
    assert load_machine(str(mine)).name == "mine"
    mine.unlink()
    words = ["--rounds", "1", "--workers", "2", "--machine-file", str(mine)]
    assert main(["bench", "plan", *words, "--output", str(figures)]) == 0
    assert "step time: median error 0%" in capsys.readouterr().out
    assert load_machine(str(mine)).process_mib == TRUTH.process_mib
    compared = json.loads(figures.read_text())["figures"]["compared"]
    assert {one["case"]["workers"] for one in compared} == {1, 2}


@pytest.mark.parametrize(
    "words",
    [["calibrate", "-o", "/nowhere/at/all.yaml"], ["plan", "--machine-file", "/nowhere/at/all"]],
)
def test_a_file_that_cannot_be_written_is_refused_before(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert "is not allowed: the folder /nowhere/at does not exist" in capsys.readouterr().err

"""``dist-embed bench cluster`` without Ray: what is left out, what is told, what is watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_embed.bench import cluster, cluster_course, cluster_data, ray_nodes
from dist_embed.bench.cluster import STAGES, Sizes, Stage, measure_cluster
from dist_embed.bench.cluster_runs import Command, first_step_after, steps_of
from dist_embed.bench.ray_nodes import RayNodes
from dist_embed.cli import bench_cluster
from dist_embed.cli.main import build_parser, main
from dist_embed.errors import RunFailed
from dist_embed.installed import MissingPackage
from dist_embed.run.metrics import METRICS_NAME
from tests.unit.printed_tables import cells

FOUND: dict[str, Any] = {
    "submit": {"sent_seconds": 2.0, "seconds": 14.25},
    "kill": {"seconds": 11.0},
    "node": {"seconds": 33.0},
    "overhead": {"1": {"step_seconds": {"local": 0.01, "ray": 0.0099}},
                 "2": {"step_seconds": {"local": 0.02, "ray": 0.0205}}},
    "elastic": {"workers": [2, 1, 2, 3], "losses": [3.0, 2.0, 1.0],
                "undisturbed_losses": [3.0, 2.0, 1.002], "largest_difference": 0.002},
    "prepare": {"mb_per_second": {"processes": {1: 2.0, 2: 3.5}, "Ray tasks": {1: 1.0, 2: 2.0}}},
    "loader": {"read": 1_000_000.0, "trained": 40_000.0},
}  # fmt: skip


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts `FOUND` in place of all measurements; the folders that they were given."""
    folders: list[str] = []

    def answering(name: str) -> Callable[[str, Sizes], Any]:
        def measure(folder: str, sizes: Sizes) -> Any:
            assert os.listdir(folder) == []
            assert "RAY_ADDRESS" not in os.environ
            folders.append(folder)
            return FOUND[name]

        return measure

    for name, stage in STAGES.items():
        instead = Stage(answering(name), stage.rows, stage.needs_ray)
        monkeypatch.setitem(STAGES, name, instead)
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    monkeypatch.setattr(cluster, "require", lambda *packages: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("RAY_ADDRESS", "somebody:6379")
    return folders


def test_options_and_their_defaults() -> None:
    given = vars(build_parser().parse_args(["bench", "cluster"]))
    assert tuple(given["stages"]) == bench_cluster.STAGES == tuple(STAGES)
    assert (given["store"], given["rounds"], given["steps"], given["plot"]) == (None, 3, 100, None)


def test_every_figure_is_told(
    found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "found.json", tmp_path / "losses.svg"
    words = ["bench", "cluster", "--store", "s3://bucket/a", "--output", str(out)]
    assert main([*words, "--plot", str(plot)]) == 0
    assert cells(capsys.readouterr().out)[1:] == [
        ["submit", "from `submit` to the first step", "14.2 s", ""],
        ["kill", "from a worker's end to the next step", "11.0 s", "≤ 20 s"],
        ["node", "from a node's end to the next step", "33.0 s", "≤ 45 s"],
        ["overhead", "a step on 1 of 2 cores, local", "10.0 ms", ""],
        ["overhead", "a step on 1 of 2 cores, ray", "9.9 ms", ""],
        ["overhead", "Ray's share, 1 of 2 cores", "-1.0%", "≤ 2 %"],
        ["overhead", "a step on 2 of 2 cores, local", "20.0 ms", ""],
        ["overhead", "a step on 2 of 2 cores, ray", "20.5 ms", ""],
        ["overhead", "Ray's share, 2 of 2 cores", "+2.5%", "≤ 2 %"],
        ["elastic", "2 → 1 → 2 → 3 workers: steps", "3", ""],
        ["elastic", "loss, first and last", "3.000, 1.000", ""],
        ["elastic", "largest difference from an undisturbed run's", "2.0e-03", ""],
        ["prepare", "1 processes", "2.00 MB/s", ""],
        ["prepare", "2 processes", "3.50 MB/s", ""],
        ["prepare", "1 Ray tasks", "1.00 MB/s", ""],
        ["prepare", "2 Ray tasks", "2.00 MB/s", ""],
        ["loader", "tokens of steps that are read", "1,000,000/s", ""],
        ["loader", "of steps that are trained", "40,000/s", ""],
        ["loader", "read / trained", "25.0", "≥ 10"],
    ]
    written = json.loads(out.read_text())["figures"]
    assert written["left_out"] == {}
    assert written["stages"] == json.loads(json.dumps(FOUND))
    assert "2 workers, undisturbed" in plot.read_text()
    assert len(set(found)) == len(STAGES)
    assert not any(map(os.path.exists, found))


def test_what_cannot_be_measured_is_left_out_with_its_reason(
    found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(1, 20, None, print)
    assert list(measure_cluster(["loader", "kill"], sizes)["stages"]) == ["kill"]
    assert "--store" in measure_cluster(["loader"], sizes)["left_out"]["loader"]

    def missing(*packages: str) -> None:
        raise MissingPackage(f"{packages[0]} is not installed")

    monkeypatch.setattr(cluster, "require", missing)
    there = Sizes(1, 20, "/store", print)
    without = measure_cluster(["loader", "kill"], there)
    assert list(without["stages"]) == ["loader"]
    assert without["left_out"] == {"kill": "ray is not installed"}
    assert cluster.cluster_table(without)[1][-1] == [
        "kill",
        "left out: ray is not installed",
        "",
        "",
    ]

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    assert "2 cores" in measure_cluster(["loader"], there)["left_out"]["loader"]


def test_a_stage_that_fails_takes_no_other_s_figures_with_it(
    found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(folder: str, sizes: Sizes) -> Any:
        raise RunFailed("no node came\nin 600 s")

    monkeypatch.setitem(STAGES, "elastic", Stage(fail, STAGES["elastic"].rows))
    out, plot = tmp_path / "found.json", tmp_path / "losses.svg"
    words = ["bench", "cluster", "--stages", "elastic", "kill", "--plot", str(plot)]
    assert main([*words, "--output", str(out)]) == 1
    said = capsys.readouterr()
    assert [row[:2] for row in cells(said.out)[1:]] == [
        ["kill", "from a worker's end to the next step"], ["elastic", "failed"],
    ]  # fmt: skip
    assert "dist-embed: elastic: no node came\nin 600 s" in said.err
    assert list(json.loads(out.read_text())["figures"]["stages"]) == ["kill"]
    assert not plot.exists()


def test_a_plot_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["bench", "cluster", "--stages", "kill", "--plot", str(tmp_path / "a.svg")]
    assert main(words) == 2
    assert "--plot: not allowed without `elastic`" in capsys.readouterr().err


def write_metrics(run: Path, *steps: tuple[int, float]) -> None:
    lines = [{"step": step, "time": when, "loss": 1.0 / step} for step, when in steps]
    lines.append({"step": steps[-1][0], "time": steps[-1][1], "bleu": 3.0})
    run.mkdir(exist_ok=True)
    (run / METRICS_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_the_first_step_of_workers_that_were_started_again(tmp_path: Path) -> None:
    """Not one that the others still made, nor one of the same number from before."""
    run: Any = SimpleNamespace(said=["resuming from the checkpoint of step 0"])
    looks: list[bool] = []

    def until(reached: Callable[[], bool], what: str) -> None:
        write_metrics(tmp_path / "r", (1, 10.0), (2, 11.0), (3, 20.5))
        looks.append(reached())
        run.said.append("resuming from the checkpoint of step 1")
        looks.append(reached())
        write_metrics(tmp_path / "r", (1, 10.0), (2, 31.0), (3, 32.0))
        looks.append(reached())

    run.until = until
    assert first_step_after(run, str(tmp_path / "r"), 20.0).time == 31.0
    assert looks == [False, False, True]
    assert [one.step for one in steps_of(str(tmp_path / "r"))] == [1, 2, 3]


def test_a_command_that_ends_too_soon_is_told_with_what_it_said() -> None:
    run = Command(["prepare", "/no/such.yaml"], os.environ)
    with pytest.raises(RunFailed, match=r"ended too soon, exit code 2\n.*no/such\.yaml"):
        run.until(lambda: False, "never")
    assert run.ended(2) == run.said
    run.close()


def test_changes_are_waited_for(tmp_path: Path) -> None:
    """A start from before the change does not count, nor do steps from before the start."""
    run: Any = SimpleNamespace(said=["2 workers on cpu (…)"])
    looks: list[bool] = []

    def until(reached: Callable[[], bool], what: str) -> None:
        looks.append(reached())
        run.said.append("2 workers on cpu (…)")
        write_metrics(tmp_path / "r", *((step, time.time() + step) for step in range(1, 30)))
        looks.append(reached())

    write_metrics(tmp_path / "r", *((step, 1.0) for step in range(1, 30)))
    run.until = until
    changed: list[int] = []
    cluster_course._changed(run, str(tmp_path / "r"), 2, lambda: changed.append(1))
    assert changed == [1]
    assert looks == [False, True, True, True]


def test_a_loader_reads_what_was_written_below_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_data, "_PAIRS", 300)
    monkeypatch.setattr(
        cluster_data, "train", lambda config, on_event: SimpleNamespace(tokens_per_second=7.0)
    )
    store = tmp_path / "store"
    store.mkdir()
    (store / "mine").write_text("not a benchmark's")
    read: list[str] = []
    reading = cluster_data._read

    def noted(config: Any, data: Any) -> float:
        read.append(data.folder_uri)
        return reading(config, data)

    monkeypatch.setattr(cluster_data, "_read", noted)
    found = cluster_data.measure_loader(str(tmp_path), str(store), 20)
    assert found["trained"] == 7.0
    assert found["read"] > 0
    assert read[0].startswith(str(store))
    assert os.listdir(store) == ["mine"]


RAY = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in *--head*) echo no room here; exit 1;; esac
echo Ray runtime started
sh -c 'sleep 600; : RayTrainWorker' & echo $! > {folder}/worker
wait
"""


@pytest.fixture
def ray_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for `ray`, whose head does not start."""
    command = tmp_path / "ray"
    command.write_text(RAY.format(folder=tmp_path))
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(ray_nodes, "_LOOK_SECONDS", 0.01)
    return tmp_path


def test_a_head_that_does_not_start_is_told(ray_command: Path) -> None:
    with pytest.raises(RunFailed, match="no room here"), RayNodes(str(ray_command)):
        raise AssertionError


def test_a_node_is_killed_with_all_that_it_runs(ray_command: Path) -> None:
    cluster = RayNodes(str(ray_command))
    cluster.address = "127.0.0.1:1"
    node = cluster.add()
    try:
        asked = (ray_command / "asked").read_text()
        assert "--address=127.0.0.1:1 --num-cpus=1" in asked
        assert cluster.environment["RAY_AUTH_TOKEN"] not in asked
        deadline = time.monotonic() + 60
        while not cluster.workers(node) and time.monotonic() < deadline:
            time.sleep(0.01)
        (worker,) = cluster.workers(node)
        assert worker == int((ray_command / "worker").read_text())
    finally:
        cluster.close()
    assert node.poll() is not None
    while time.monotonic() < deadline and is_running(worker):
        time.sleep(0.01)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    """Whether it is there, and no zombie that nobody buries."""
    done = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, check=False)
    return done.stdout.strip() not in (b"", b"Z")

"""``launch/gpu.sh``: how stages are run and told, with commands that stand in for the real ones."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_embed.bench import gpu
from dist_embed.bench.gpu_aims import AIMS, aim_lines
from dist_embed.bench.gpu_stages import STAGES, Stage, Work
from dist_embed.cli.main import build_parser
from dist_embed.config.load import load_config


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def stage(name: str, *commands: list[str], seconds: int = 60, needed: bool = False) -> Stage:
    return Stage(name, "for a test", seconds, lambda work: list(commands), needed)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def run(*stages: Stage, asked: Any = ("--device", "cpu")) -> int:
    return gpu.main(list(asked), stages)


def summary(out: Path) -> dict[str, str]:
    lines = (out / "summary.txt").read_text().partition("\n\n")[0].splitlines()
    return {line.split()[0]: line.partition(" s ")[2].strip() for line in lines}


def test_stages_run_in_order_and_one_that_fails_stops_no_other(
    out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    well = python("import sys; print('first', flush=True); print('second', file=sys.stderr)")
    assert run(stage("bad", python("exit(3)"), well), stage("good", well)) == 1
    assert summary(out) == {"bad": "failed with exit code 3", "good": "passed"}
    assert (out / "log.txt").read_text().count("first\nsecond") == 2  # in the failed one too
    shown = capfd.readouterr().out
    ends = [shown.index(f"-- {ended}") for ended in ("bad: failed", "good: passed")]
    assert shown.index("\nfirst\n") < ends[0] < shown.rindex("\nfirst\n") < ends[1]
    assert run(stage("good", well)) == 0


def test_without_what_is_needed_nothing_else_is_tried(out: Path, tmp_path: Path) -> None:
    touch = python("import sys; open(sys.argv[1], 'w')", str(tmp_path / "touched"))
    assert run(stage("first", python("exit(1)"), needed=True), stage("second", touch)) == 1
    assert summary(out) == {"first": "failed with exit code 1", "second": "left out"}
    assert not (tmp_path / "touched").exists()


def test_a_stage_that_takes_too_long_is_ended_with_what_it_started(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0)
    monkeypatch.setattr(gpu, "SLOWER", 1)
    code = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '100']);"
        "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(100)"
    )
    started = time.monotonic()
    assert run(stage("slow", python(code, str(tmp_path / "pid")), seconds=2)) == 1
    assert time.monotonic() - started < 60
    assert summary(out) == {"slow": "not done within 2 s"}
    child = Path("/proc") / (tmp_path / "pid").read_text() / "cmdline"
    deadline = time.monotonic() + 30
    while child.exists() and child.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or not child.read_bytes()


def test_stages_beyond_the_budget_are_left_out(out: Path) -> None:
    asked = ("--device", "cpu", "--budget", "1")
    assert run(stage("one", python("")), asked=asked) == 1
    assert summary(out) == {"one": "left out, no time"}


@pytest.mark.parametrize(("code", "told"), [(0, "passed"), (1, "failed with exit code 1")])
def test_what_a_stage_counts_is_told(out: Path, code: int, told: str) -> None:
    greeting = r"'\x1b[33m\n\n\x1b[0m'"
    command = python(f"print('first\\n5 passed, 2 failed'); print({greeting}); exit({code})")
    assert run(Stage("tests", "", 60, lambda work: [command], counts=True)) == code
    assert summary(out) == {"tests": f"{told}: 5 passed, 2 failed"}


def test_figures_of_all_stages_come_into_one_file(out: Path) -> None:
    def commands(work: Work) -> list[list[str]]:
        write = "import sys; open(sys.argv[1], 'w').write('{\"a\": 1}')"
        return [python(write, str(work.figures / "one.json"))]

    assert run(Stage("one", "", 60, commands), stage("two", python("exit(1)"))) == 1
    assert json.loads((out / "figures.json").read_text()) == {"one": {"a": 1}}


def test_only_stages_that_are_asked_for(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = python("")
    assert run(stage("one", good), stage("two", good), asked=("--device", "cpu", "two")) == 0
    assert list(summary(out)) == ["two"]
    assert gpu.main(["three"], [stage("one", good)]) == 2
    assert "three is not a stage; these are: one" in capsys.readouterr().err


def lookup(update: float, kernel: float) -> dict[str, Any]:
    seconds = {"update": update, "kernel_update": kernel}
    busy = {"update_on_device": 3.0, "kernel_update_on_device": 2.0}
    found = {"update_bytes": 700, "seconds": {**seconds, **busy}}
    return {"copied_bytes": 500, "copy_seconds": 1.0, "found": [found]}


def exact(name: str, ms: list[float], gib: float) -> dict[str, Any]:
    seconds = {"layer": [one / 1e3 for one in ms]}
    return {"name": name, "seconds": seconds, "beyond_bytes": int(gib * 2**30)}


def test_what_is_aimed_at_stands_beside_what_was_found() -> None:
    assert all("not measured" in line for line in aim_lines({}))
    found = {
        "lookup": lookup(2.0, 1.0),
        "lookup_public": lookup(1.2, 1.0),
        "lookup_adam": {"found": []},
        "output": {"sides": [
            exact("exact, auto", [80.0, 70.0, 71.0], 2.0), exact("F.cross_entropy", [1.0], 0.1),
        ]},
        "output_blocks": {"sides": [
            exact("exact, 64 MiB", [101.0], 1.5), exact("exact, 32 MiB", [99.0], 1.0),
            exact("exact, 1024 MiB", [9.0], 1.6), exact("F.cross_entropy", [1.0], 0.1),
        ]},
        "speed": {"tokens_per_second": {"dist_embed bf16": 399_000.0}},
        "vocabulary": {"speeds": [[{"ratio_to_first": 1.0}, {"ratio_to_first": 1.05}]]},
        "step": {"waits_by_place": {"dist_embed/training/step.py:run": 2, "torchrec/x.py:y": 3}},
    }  # fmt: skip
    lines = aim_lines({name: {"figures": figures} for name, figures in found.items()})
    assert [line.partition(": ")[2] for line in lines] == [
        "70 (aim ≥ 70): reached",
        "1.20 (aim ≤ 1.10): NOT reached",
        "1.50 (aim ≤ 1.10): NOT reached",
        "not to be read from the figures (ValueError('max() arg is an empty sequence'))",
        "71.0 (aim ≤ 75.0): reached",
        "99.0 (aim ≤ 100.0): reached",
        "399,000 (aim ≥ 400,000): NOT reached",
        "1.05 (aim ≤ 1.10): reached",
        "1 (aim ≤ 0): NOT reached",
    ]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("multi30k", [Path("/corpus"), None])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_commands_can_be_read(
    stage: Stage,
    device: Any,
    multi30k: Path | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU a mistake in an argument or in a key of a configuration would cost a run."""
    work = Work(device, tmp_path, tmp_path, multi30k)
    for name, value in work.environment.items():
        monkeypatch.setenv(name, value)
    written: list[Path] = []
    for command in stage.commands(work):
        assert command[0] == sys.executable
        if command[1:3] == ["-m", "dist_embed.cli.main"]:
            read = build_parser().parse_args(command[3:])
            if hasattr(read, "overrides"):
                config = load_config(read.config, read.overrides)
                assert config.cluster.device == device
                assert config.model.width == (512 if device == "cuda" else 16)
            if getattr(read, "output", None):
                written.append(Path(read.output))
        elif command[1:3] == ["-m", "tests.gpu.run"]:
            paths = [one for one in command if one.startswith("tests/gpu")]
            assert paths
            assert all((gpu.PROJECT / path).exists() for path in paths)
            written.append(Path(command[command.index("--json") + 1]))
    assert len({*written}) == len(written)
    assert all(path.parent == tmp_path / "figures" for path in written)


def test_every_aim_has_its_command(tmp_path: Path) -> None:
    work = Work("cuda", tmp_path, tmp_path, Path("/corpus"))
    commands = [part for stage in STAGES for command in stage.commands(work) for part in command]
    for aim in AIMS:
        assert str(tmp_path / "figures" / f"{aim.source}.json") in commands

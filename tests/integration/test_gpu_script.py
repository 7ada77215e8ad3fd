"""``launch/gpu.sh`` on the CPU, its stages at small sizes: none is to end on a GPU by a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dist_embed.bench.gpu_stages import STAGES

ROOT = Path(__file__).parents[2]


def summary(out: Path, *arguments: str) -> dict[str, str]:
    """By stage how it ended."""
    done = subprocess.run(
        [ROOT / "launch" / "gpu.sh", "--device", "cpu", "--output", out, *arguments], check=False,
        capture_output=True, text=True, env={"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (out / "summary.txt").read_text().partition("\n\n")[0].splitlines()
    return {line.split()[0]: line.partition(" s ")[2].strip() for line in lines}


@pytest.mark.parametrize("measured", [[], pytest.param(["checkpoint"], marks=pytest.mark.heavy)])
def test_from_another_folder_with_a_python_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = ["device", *measured]
    assert summary(Path("found"), *stages) == dict.fromkeys(stages, "passed")
    assert "versions: {'dist_embed'" in (tmp_path / "found" / "log.txt").read_text()
    assert list(json.loads((tmp_path / "found" / "figures.json").read_text())) == measured


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_every_stage(tmp_path: Path) -> None:
    found = summary(tmp_path, "--budget", "1700")
    assert list(found) == [stage.name for stage in STAGES]
    assert found.pop("compiled") == "for a GPU alone"
    assert all(told.startswith("passed") for told in found.values()), found
    written = set(json.loads((tmp_path / "figures.json").read_text()))
    assert {"tests", "lookup", "speed", "step", "output", "tiers"} < written
    assert (tmp_path / "profile" / "trace.json.gz").exists()

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_embed.cli.main import main
from dist_embed.config.load import config_to_yaml
from tests.unit.planned import MACHINE, configured


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(configured()))
    return str(path)


def test_a_page_and_a_file(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    machine = tmp_path / "machine.yaml"
    machine.write_text(MACHINE + "source: guessed\n")
    words = ["plan", file, "--workers", "2,8", "--machine", str(machine), "--json", str(output)]
    assert main([*words, "model.output=sampled", "model.num_samples=10"]) == 0
    said = capsys.readouterr().out
    for part in (
        "| workers", "optimizer of tables", "table backward", "First limit: ",
        "machine made up: guessed",
    ):  # fmt: skip
        assert part in said
    plans = json.loads(output.read_text())["plans"]
    assert [one["workers"] for one in plans] == [2, 8]
    assert plans[0]["memory_bytes"] == sum(plans[0]["memory"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "--workers: '0' is not allowed"),
        (["--workers", "2,x"], "--workers: '2,x' is not allowed"),
        (["--workers", "4000"], "workers: 4000 is not allowed: table 'shared' has 1,000 rows"),
        (["--machine", "nothing"], "--machine: 'nothing' is neither a file nor one of "),
        (["--json", "/nowhere/at/all"], "--output: '/nowhere/at/all' is not allowed"),
        (["embedding.widht=3"], "did you mean 'embedding.width'"),
    ],
)
def test_bad_input_is_one_line(
    file: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["plan", file, *words]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""

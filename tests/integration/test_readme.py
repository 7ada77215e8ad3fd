"""The three ways in that README.md shows, as it shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of a line "<!-- tested -->", then a block of code.
TESTED = re.compile(r"^<!-- tested -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def marked_blocks(text: str) -> list[tuple[str, str]]:
    """Language and code of each."""
    return TESTED.findall(text)


def start(language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code from a file, in a folder that has what the project's own has."""
    program = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}[language]
    file = folder / f"way_in.{language}"
    file.write_text(code)
    environment = os.environ | {"DIST_EMBED_VENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "RAY_ADDRESS"):
        environment.pop(name, None)
    return subprocess.run(
        [*program, str(file)], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("readme")
    for name in ("launch", "configs"):
        (made / name).symlink_to(ROOT / name)
    return made


@pytest.mark.heavy
@pytest.mark.timeout(1500, func_only=True)
def test_the_three_ways_in_run(folder: Path) -> None:
    blocks = marked_blocks((ROOT / "README.md").read_text())
    assert [language for language, _ in blocks] == ["bash", "python", "python"]
    said, lines_of_run = [], []
    for language, code in blocks:  # the second goes on with what the first has trained
        done = start(language, code, folder)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        said.append(done.stdout)
        lines_of_run.append((folder / "runs/first/metrics.jsonl").read_text().count("\n"))
    assert re.search(r"^BLEU \d", said[0], re.MULTILINE)
    assert "cosine" in said[0]
    assert (folder / "map.html").stat().st_size > 10_000
    assert len((folder / "vectors.txt").read_text().splitlines()) > 1000
    assert len(said[1].splitlines()[-1].split()) > 1  # a translation
    assert lines_of_run[0] > 0
    assert lines_of_run == lines_of_run[:1] * 3  # it was complete


def test_the_loop_of_ones_own_runs(tmp_path: Path) -> None:
    *_, (language, code) = marked_blocks((ROOT / "README.md").read_text())
    assert "ShardedTables" in code
    done = start(language, f"{code}\nprint(rows.vectors('word').shape)\n", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "torch.Size([3, 64])"


def test_blocks_are_found() -> None:
    text = (
        "<!-- tested -->\n```bash\necho 1\n```\n"
        "```bash\necho 2\n```\n"
        "<!-- tested -->\n```python\nprint(3)\n\nprint(4)\n```\n"
    )
    assert marked_blocks(text) == [("bash", "echo 1\n"), ("python", "print(3)\n\nprint(4)\n")]


@pytest.mark.parametrize(("language", "code"), [("bash", "false\ntrue\n"), ("python", "1 / 0\n")])
def test_a_block_that_fails_is_seen(language: str, code: str, tmp_path: Path) -> None:
    assert start(language, code, tmp_path).returncode != 0

"""What the README promises of the quickstart: minutes of training, so in the heavy tier."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.integration.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")


def bleu(output: str) -> float:
    found = re.search(r"BLEU (\d+\.\d+)", output)
    assert found is not None, output
    return float(found.group(1))


def readme_commands() -> list[tuple[list[str], str | None]]:
    """Arguments and standard input of each call of launch/run.sh in the README, in its order."""
    found = []
    for block in (ROOT / "README.md").read_text().split("```bash\n")[1:]:
        for line in block.split("```")[0].splitlines():
            words = shlex.split(line, comments=True)
            for start in range(len(words) - 1):
                if words[start : start + 2] == ["bash", "launch/run.sh"] and words[0] != "ray":
                    text = words[1] + "\n" if words[0] == "echo" else None
                    found.append((words[start + 2 :], text))
    return found


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_the_quickstart_learns_and_the_commands_of_the_readme_run(
    dist_embed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    data = "data.uri=runs/data"
    untrained = dist_embed(
        "quickstart", CONFIG, data, "run.uri=runs/one", "train.max_steps=1",
        "cluster.launcher=local",
    )  # fmt: skip
    assert bleu(untrained.stdout) < 1
    trained = dist_embed("quickstart", CONFIG, data)
    assert bleu(trained.stdout) >= 50
    again = dist_embed("quickstart", CONFIG, data)
    assert "already trained: 600 steps" in again.stdout
    assert bleu(again.stdout) == bleu(trained.stdout)

    (nothing, _), *commands = readme_commands()
    assert not nothing  # the quickstart
    assert {"train", "translate", "compare", "export"} <= {words[0] for words, _ in commands}
    for words, text in commands:
        assert dist_embed(*words, text=text).stdout

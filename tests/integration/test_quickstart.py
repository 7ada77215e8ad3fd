"""What the README promises of the quickstart: minutes of training, so in the heavy tier."""

from __future__ import annotations

import gzip
import re
import shlex
from pathlib import Path

import pytest

from dist_embed.data.languages.synthetic import SyntheticLanguage
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


def write_own_text(folder: Path) -> None:
    """The README's configuration for text of one's own, and such text."""
    (block,) = (ROOT / "README.md").read_text().split("```yaml\n")[1:]
    (folder / "my_run.yaml").write_text(block.split("```")[0])
    pairs = list(SyntheticLanguage(20, 10, 8, 3).pairs(500, "train", 1))
    for number, side in enumerate(("en", "de")):
        text = "".join(f"{pair[number]}\n" for pair in pairs)
        (folder / f"train.{side}.gz").write_bytes(gzip.compress(text.encode()))
        for name in ("dev", "test"):
            (folder / f"{name}.{side}").write_text("".join(text.splitlines(keepends=True)[:20]))


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_alone")
@pytest.mark.timeout(1500, func_only=True)
def test_the_quickstart_learns_and_the_commands_of_the_readme_run(
    as_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_own_text(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    data = "data.uri=runs/data"
    untrained = as_process(
        "quickstart", CONFIG, data, "run.uri=runs/one", "train.max_steps=1",
        "cluster.launcher=local",
    )  # fmt: skip
    assert bleu(untrained.stdout) < 1
    trained = as_process("quickstart", CONFIG, data)
    assert bleu(trained.stdout) >= 50
    again = as_process("quickstart", CONFIG, data)
    assert "already trained: 600 steps" in again.stdout
    assert bleu(again.stdout) == bleu(trained.stdout)

    commands = readme_commands()
    commands.remove(([], None))  # the quickstart, above
    assert {"train", "translate", "compare", "export"} <= {words[0] for words, _ in commands}
    for words, text in commands:
        if words[0] == "study":
            continue  # half an hour; tests of studies run small ones
        # So few texts have fewer words than the default has negatives.
        small = ["train.max_steps=5", "model.num_samples=20"]
        short = small if words == ["train", "my_run.yaml"] else []
        assert as_process(*words, *short, text=text).stdout

"""What the README promises of the quickstart: minutes of training, so in the heavy tier."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")


def bleu(output: str) -> float:
    found = re.search(r"BLEU (\d+\.\d+)", output)
    assert found is not None, output
    return float(found.group(1))


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_quickstart_learns(dist_embed: Command, tmp_path: Path) -> None:
    data = f"data.uri={tmp_path / 'data'}"
    untrained = dist_embed(
        "quickstart", CONFIG, data, f"run.uri={tmp_path / 'one'}", "train.max_steps=1",
        "cluster.launcher=local",
    )  # fmt: skip
    assert bleu(untrained.stdout) < 1
    trained = dist_embed("quickstart", CONFIG, data, f"run.uri={tmp_path / 'run'}")
    assert bleu(trained.stdout) >= 50
    again = dist_embed("quickstart", CONFIG, data, f"run.uri={tmp_path / 'run'}")
    assert "already trained: 600 steps" in again.stdout
    assert bleu(again.stdout) == bleu(trained.stdout)

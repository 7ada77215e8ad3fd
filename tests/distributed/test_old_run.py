"""Runs and prepared data of earlier versions go on, and compute what they did.

``old_runs`` holds one folder for each format of prepared data, a run with its data in it, and in
``expected.json`` what the version that wrote it printed of its test set.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dist_embed.cluster.preparation import ensure_data
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.token_shards import PreparedData
from dist_embed.observe.events import Reporter
from dist_embed.parallel.group import Group
from dist_embed.train.run_folder import read_run_config
from dist_embed.train.worker import Context, evaluate_task, train_task
from tests.distributed.pool import WorkerPool

STORED = Path(__file__).parent / "old_runs"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(STORED / "format-1", tmp_path / "run")
    return tmp_path / "run"


def evaluate(group: Group, run: str) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    reporter = Reporter(lambda event: said.append(event.get("text", "")))
    options = {"split": "test", "step": None}
    return evaluate_task(Context(read_run_config(run), group, reporter, options)), said


def train(group: Group, run: str, steps: int) -> dict[str, Any]:
    config = read_run_config(run)
    longer = config.train.model_copy(update={"max_steps": steps})
    config = config.model_copy(update={"train": longer})
    return train_task(Context(config, group, Reporter(lambda event: None), {}))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_stored_run_computes_what_it_did_and_goes_on(workers: WorkerPool, run: Path) -> None:
    expected = json.loads((run / "expected.json").read_text())
    found, said = workers.run(1, evaluate, str(run))[0]
    assert found["translations"] == expected["translations"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["step"] == expected["step"]
    assert [line for line in said if "not proven" in line] == [
        f"{run}/data was prepared before data carried digests: it is read, but not proven. "
        "Prepared again, it is"
    ]
    step = expected["step"]
    (trained,) = workers.run(1, train, str(run), step + 1)
    assert (trained["resumed_at"], trained["steps"]) == (step, step + 1)


def test_stored_data_are_taken_as_they_are(run: Path) -> None:
    before = files_below(run)
    said: list[str] = []
    config = read_run_config(str(run))
    data = ensure_data(config, said.append)
    assert len(said) == 1  # neither prepared nor learned again
    assert "not proven" in said[0]
    assert files_below(run) == before
    assert PreparedData.read(config.data.uri).to_json() == before["data/data.json"].decode()
    assert data.splits["train"].identity() == "120 pairs in 2 shards (79086afa10765faf)"
    assert Lexicon(str(run)).index.format == 1

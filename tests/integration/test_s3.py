"""A run and its data on an S3 server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.several_commands import in_one_process
from tests.stores.s3_server import MotoServer, connect


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[MotoServer]:
    with MotoServer(tmp_path / "moto") as server:
        server.make_bucket("bucket")
        yield server


def test_a_run_lives_on_s3(config: str, s3: MotoServer) -> None:
    run = "s3://bucket/runs/one"
    train = ["train", config, f"run.uri={run}"]
    commands = [
        [*train, "train.max_steps=4"], train, ["checkpoint", "list", run],
        ["evaluate", run, "--workers", "1"],
    ]  # fmt: skip
    # Workers are forked from a server with the environment of its start.
    done = in_one_process(*commands, environment={**os.environ, **s3.environment})
    first, _, resumed = done.stdout.partition("resuming from the checkpoint of step 4")
    assert "step 4/4" in first
    assert re.findall(r"^\| +(\d+) +\| 20", resumed, re.MULTILINE) == ["4", "8"]
    assert re.search(r"^BLEU \d", resumed, re.MULTILINE)
    store = connect(s3.url)
    names = {path.rsplit("/", 1)[-1] for path in store.ls("bucket/runs/one")}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "data", "checkpoints"} <= names
    lines = store.cat_file("bucket/runs/one/metrics.jsonl").decode().splitlines()
    assert sum('"loss"' in line for line in lines) == 8

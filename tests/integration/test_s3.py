"""A run and its data on an S3 server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores.s3_server import MotoServer, connect

# One process, for its workers are forked from a server with the environment of its start.
COMMANDS = """
import json, sys
from dist_embed.cli.main import main
for words in json.load(sys.stdin):
    if code := main(words):
        sys.exit(code)
"""


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
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], input=json.dumps(commands), capture_output=True,
        text=True, timeout=300, env={**os.environ, **s3.environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    first, _, resumed = done.stdout.partition("resuming from the checkpoint of step 4")
    assert "step 4/4" in first
    assert re.findall(r"^\| +(\d+) +\| 20", resumed, re.MULTILINE) == ["4", "8"]
    assert re.search(r"^BLEU \d", resumed, re.MULTILINE)
    store = connect(s3.url)
    names = {path.rsplit("/", 1)[-1] for path in store.ls("bucket/runs/one")}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "data", "checkpoints"} <= names
    lines = store.cat_file("bucket/runs/one/metrics.jsonl").decode().splitlines()
    assert sum('"loss"' in line for line in lines) == 8

"""A run and its data on an S3 server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs

from dist_embed.cluster import local
from tests.integration.conftest import Command
from tests.stores.s3_server import MotoServer, connect


def child_with(environment: dict[str, str], *arguments: Any) -> None:
    """A worker; what it is forked from began before there was the server."""
    os.environ.update(environment)
    local._child(*arguments)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MotoServer]:
    with MotoServer(tmp_path / "moto") as server:
        server.make_bucket("bucket")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(local, "_child", partial(child_with, server.environment))
        s3fs.S3FileSystem.clear_instance_cache()  # those of other servers
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_lives_on_s3(config: str, dist_embed: Command, s3: MotoServer) -> None:
    run = "s3://bucket/runs/one"
    train = ("train", config, f"run.uri={run}")
    assert "step 4/4" in dist_embed(*train, "train.max_steps=4").stdout
    assert "resuming from the checkpoint of step 4" in dist_embed(*train).stdout
    listed = dist_embed("checkpoint", "list", run).stdout
    assert re.findall(r"^\| +(\d+) +\| 20", listed, re.MULTILINE) == ["4", "8"]
    evaluated = dist_embed("evaluate", run, "--workers", "1").stdout
    assert re.search(r"^BLEU \d", evaluated, re.MULTILINE)
    store = connect(s3.url)
    names = {path.rsplit("/", 1)[-1] for path in store.ls("bucket/runs/one")}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "data", "checkpoints"} <= names
    lines = store.cat_file("bucket/runs/one/metrics.jsonl").decode().splitlines()
    assert sum('"loss"' in line for line in lines) == 8

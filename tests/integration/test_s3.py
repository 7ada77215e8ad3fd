"""A run and its data on an S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import s3fs

from tests.integration.conftest import Command


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """An S3 server in memory with a bucket; the environment that reaches it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.1)
        store = s3fs.S3FileSystem(
            key="testkey", secret="testsecret", client_kwargs={"endpoint_url": url}
        )
        store.mkdir("bucket")
        yield environment
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_a_run_lives_on_s3(config: str, dist_embed: Command, s3: dict[str, str]) -> None:
    run = "s3://bucket/runs/one"
    dist_embed("train", config, f"run.uri={run}", "train.max_steps=4", **s3)
    resumed = dist_embed("train", config, f"run.uri={run}", **s3)
    assert "resuming from the checkpoint of step 4" in resumed.stdout
    listed = dist_embed("checkpoint", "list", run, **s3).stdout.splitlines()
    assert [line.split()[1] for line in listed[2:]] == ["4", "8"]
    assert "BLEU" in dist_embed("evaluate", run, "--workers", "1", **s3).stdout
    store = s3fs.S3FileSystem(
        key="testkey", secret="testsecret", client_kwargs={"endpoint_url": s3["AWS_ENDPOINT_URL"]}
    )
    names = {path.rsplit("/", 1)[-1] for path in store.ls("bucket/runs/one")}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "data", "checkpoints"} <= names
    lines = store.cat_file("bucket/runs/one/metrics.jsonl").decode().splitlines()
    assert sum('"loss"' in line for line in lines) == 8

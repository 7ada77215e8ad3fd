"""What the pods of a manifest do before they end, with a Ray of this machine in their place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# No process, and no port, of anybody else is seen there.
ALONE = ["unshare", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"]
CAN_BE_ALONE = (
    shutil.which("unshare") is not None
    and subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
)
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CAN_BE_ALONE, reason="unshare gives no network of its own here"),
]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray puts sockets there, whose names may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def ended(folder: Path, which: str) -> Any:
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "tests.integration.pods", str(folder), which], cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_head_that_is_to_end_has_the_run_saved_and_its_job_tried_again(
    short_folder: Path,
) -> None:
    told = ended(short_folder, "head")
    assert told["code"] == 0
    assert "stopped as asked after step" in told["log"]
    assert len(told["saved"]) == 1
    # KubeRay takes a job that was stopped for complete.
    assert "failed" in told["status"].lower()


def test_a_worker_that_is_to_end_has_the_run_saved_which_waits_for_another(
    short_folder: Path,
) -> None:
    told = ended(short_folder, "worker")
    assert told["code"] == 0, told["said"]
    assert "a node is about to be taken away: the workers save after their step" in told["log"]
    assert len(told["saved"]) == 1
    assert "running" in told["status"].lower()

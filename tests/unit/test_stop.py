"""The request to end early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_embed.parallel.stop import (
    exit_on_sigterm,
    request_stop,
    stop_on_sigterm,
    stop_requested,
)


def test_sigterm_ends_a_command_as_an_error_would() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, exit_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_preparing_leaves_no_temporary_files_when_it_is_stopped(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    text = tmp_path / "text.txt"
    text.write_bytes(b"some words of a text that is counted for many seconds\n" * 1_000_000)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{uri: {tmp_path}/run}}\ntrain: {{max_steps: 1}}\n"
        f"data: {{num_processes: 1, train: {{source: {text}, target: {text}}}}}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "dist_embed.cli.main", "prepare", str(config)],
        cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while not list(temporary.glob("dist_embed-words-*")) and time.monotonic() < limit:
            time.sleep(0.05)
        assert list(temporary.glob("dist_embed-words-*"))
        process.terminate()
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert not list(temporary.glob("dist_embed-*"))


def test_sigterm_is_a_request_within_the_block_and_gone_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm():
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
    assert not stop_requested()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_request_made_before_the_block_counts_in_it() -> None:
    # Under Ray a thread listens for the launcher's request before the worker's task begins.
    request_stop()
    with stop_on_sigterm():
        assert stop_requested()
    assert not stop_requested()

"""Signals to a whole command while nothing is trained yet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.left_behind import living


def test_preparing_ends_by_a_signal_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    text = tmp_path / "text.txt"
    text.write_bytes(b"some words of a text that is counted for many seconds\n" * 1_000_000)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{uri: {tmp_path}/run}}\ntrain: {{max_steps: 1}}\n"
        f"data: {{num_processes: 2, train: {{source: {text}, target: {text}}}}}\n"
    )

    def begin() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        process = subprocess.Popen(
            ["nohup", sys.executable, "-m", "dist_embed.cli.main", "prepare", str(config)],
            env=os.environ | {"TMPDIR": str(temporary)}, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        limit = time.monotonic() + 200
        folders = len(list(temporary.iterdir()))
        # The folder of the words, and in it what the processes write.
        while not list(temporary.glob("dist_embed-words-*/spill-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert folders <= 2  # of the words, and of the tables made of them
        return process, psutil.Process(process.pid).children(recursive=True)

    process, children = begin()
    process.kill()
    process.communicate()
    left = list(temporary.glob("dist_embed-words-*"))
    assert len(left) == 1
    for path in left[0].iterdir():
        path.unlink()
    process, more = begin()
    assert not left[0].exists()  # its owner was gone
    os.killpg(process.pid, signal.SIGHUP)  # which nohup has it ignore
    time.sleep(0.5)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("dist-embed: ended by SIGINT")
    assert "Traceback" not in said
    assert list(temporary.iterdir()) == []
    assert living([*children, *more]) == []

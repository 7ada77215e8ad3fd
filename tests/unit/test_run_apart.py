"""Programs that run apart end in time, and tell why they did not."""

from __future__ import annotations

import time
from pathlib import Path
from subprocess import Popen, TimeoutExpired

import psutil
import pytest

from tests.unit import run_apart as module

SAYS_AND_STAYS = """
import os, sys, time
print("here", file=sys.stderr, flush=True)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_what_is_not_done_in_time_is_ended_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = tmp_path / "1/out"

    class Impatient(Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout != module.LIMIT_SECONDS:
                return super().wait(timeout)
            while not (said.exists() and said.read_text().endswith("\n")):
                time.sleep(0.01)
            raise TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(module, "Popen", Impatient)
    with pytest.raises(AssertionError, match=r"^not done in .*\n.*1/out:\n\d+\n\n.*/err:\nhere\n"):
        module.run_apart("", ["print('done')", SAYS_AND_STAYS], tmp_path)
    until = time.monotonic() + 30  # it is a grandchild: whoever inherits it waits for it
    while is_running(int(said.read_text())):
        assert time.monotonic() < until
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

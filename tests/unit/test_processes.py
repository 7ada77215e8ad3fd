"""The processes that prepare data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from dist_embed.config.errors import UserError
from dist_embed.data.processes import Processes, processes


def end_by_signal(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_is_told_as_such() -> None:
    with (
        processes(2) as pool,
        pytest.raises(UserError, match=r"one of 2 processes .* set data\.num_processes"),
    ):
        list(pool.map(end_by_signal, ((number,) for number in range(100))))


def test_no_more_processes_than_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    pool = Processes(0)
    assert pool.number == 1
    pool.close()


def test_a_killed_command_leaves_no_process_behind() -> None:
    code = (
        "import os, time\n"
        "from dist_embed.data.processes import Processes\n"
        "if __name__ == '__main__':\n"
        "    pool = Processes(2)\n"
        "    print(*set(pool.map(os.getpid, [()] * 20)), flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for process in alive:
        process.kill()
    assert not alive

"""The processes that prepare data."""

from __future__ import annotations

import subprocess
import sys

import psutil


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

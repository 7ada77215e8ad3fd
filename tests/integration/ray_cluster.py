"""A Ray cluster of this machine, for tests: a head node with its job server."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from dist_embed.bench.ray_nodes import free_ports
from tests.left_behind import living

# There others leave workers no time, and a node gives itself up whose dashboard took more than
# a minute to start, or whose agent more than half a one (Ray 2.60).
FOR_BUSY_MACHINES = {
    "RAY_worker_niceness": "0",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_agent_register_timeout_ms": "300000",
}


@contextmanager
def ray_cluster(folder: Path, *, asks_for_token: bool = True) -> Iterator[dict[str, str]]:
    """Up for the length of a ``with`` block; gives the environment that reaches it.

    With `ADDRESS`, where drivers connect, RAY_API_SERVER_ADDRESS, where its job server is, and
    `RAY`, the command.
    """
    ray = str(Path(sys.executable).parent / "ray")
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        **FOR_BUSY_MACHINES,
        "PATH": f"{Path(ray).parent}:{os.environ['PATH']}",
    }
    # Ray's job server asks for a token; the head and the sender of the job read the same file.
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    mode = "token" if asks_for_token else "disabled"
    environment |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token)}
    port, dashboard, agent = free_ports(3)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={agent}"]  # fmt: skip
    log = folder / "head.log"
    # Without `--block`, which ends the head where the server of Ray's client, which nobody uses
    # here, waits for more than 30 s: it does where the dashboard takes so long to start (2.60).
    command = [ray, "start", "--head", "--num-cpus=4", "--include-dashboard=true", *ports]
    session = _started(command, environment, log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not _job_server_answers(f"{address}/api/version"):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield {
            **environment, "RAY_API_SERVER_ADDRESS": address, "RAY": ray,
            "ADDRESS": f"127.0.0.1:{port}",
        }  # fmt: skip
    finally:
        _end(session)


def _started(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Start a head in a session of its own, so that it alone is ended: `ray stop` would end every
    Ray. Returns the session's number. A node gives up that is not there after 30 s (Ray 2.60,
    node.py), so another one is tried.
    """
    for left in (2, 1, 0):
        with log.open("w") as output:
            head = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        with suppress(subprocess.TimeoutExpired):
            if head.wait(400) == 0:
                return head.pid
        _end(head.pid)
        assert left, log.read_text()
    raise AssertionError


def _end(session: int) -> None:
    """End the processes of a session, and what they have started in others, as drivers of jobs."""
    found = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(one.pid) == session:
                found += [one, *one.children(recursive=True)]
    for one in found:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    living(found, 10.0)


def _job_server_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:  # it answers, but wants a token, which `ray job` knows
        return True
    except OSError:
        return False

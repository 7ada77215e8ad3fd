"""Ray clusters of this machine, for tests: a head node with its job server and a token; and nodes
that come and go.
"""

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
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from dist_embed.bench.ray_nodes import free_ports
from tests.integration.patient_ray import agent_ports, be_patient


@contextmanager
def ray_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Up for the length of a ``with`` block; gives the environment that reaches it.

    With `ADDRESS`, where drivers connect, RAY_API_SERVER_ADDRESS, where its job server is, and
    `RAY`, the command.
    """
    ray = str(Path(sys.executable).parent / "ray")
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        # On a busy machine others would leave workers no time, and a node gives itself up whose
        # agent took more than half a minute to start.
        "RAY_worker_niceness": "0",
        "RAY_agent_register_timeout_ms": "300000",
        "PATH": f"{Path(ray).parent}:{os.environ['PATH']}",
    }
    # Ray's job server asks for a token; the head and the sender of the job read the same file.
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, dashboard, agent = free_ports(3)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={agent}"]  # fmt: skip
    log = folder / "head.log"
    with log.open("w") as output:
        # A session of its own, so that this head alone is ended: `ray stop` would end every Ray.
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", "--num-cpus=4", "--include-dashboard=true", *ports],
            stdout=output, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not _job_server_answers(f"{address}/api/version"):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield {
            **environment, "RAY_API_SERVER_ADDRESS": address, "RAY": ray,
            "ADDRESS": f"127.0.0.1:{port}",
        }  # fmt: skip
    finally:
        # Not terminated: `ray start --block` takes half a minute to end.
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(timeout=60)
        psutil.wait_procs(processes, timeout=10)


def _job_server_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:  # it answers, but wants a token, which `ray job` knows
        return True
    except OSError:
        return False


class Nodes:
    """A head without slots, on which commands run, and nodes with one slot and an address each."""

    def __init__(self) -> None:
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **agent_ports()},
        )
        self.address: str = self._cluster.address
        self.there: list[Any] = []
        self._leaving: list[Any] = []
        self._count = 0

    def add(self) -> Any:
        self._count += 1
        node = self._cluster.add_node(
            num_cpus=1, node_ip_address=f"127.0.0.{1 + self._count}", **agent_ports()
        )
        self.there.append(node)
        return node

    def remove(self, node: Any) -> None:
        """At once and without notice."""
        self.there.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: int) -> None:
        """As a machine's owner does who takes it away."""
        self.there.remove(node)
        self._leaving.append(node)
        subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", self.address,
             "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
             "--reason-message", "a test", "--deadline-remaining-seconds", str(seconds)],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip

    def settle(self, count: int) -> None:
        """As many as that from now on, none of which is about to go."""
        for node in (*self._leaving, *self.there[count:]):
            self._cluster.remove_node(node, allow_graceful=False)
        self._leaving.clear()
        del self.there[count:]
        while len(self.there) < count:
            self.add()

    def workers(self, node: Any) -> list[psutil.Process]:
        """The training processes of a node."""
        (raylet,) = [one.process.pid for one in node.all_processes["raylet"]]
        found = []
        for child in psutil.Process(raylet).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def worker(self, number: int) -> psutil.Process:
        """The process of the worker with this number, once it trains: by the log it writes to."""
        log = f"/worker-{number}.log"
        (found,) = [
            worker for node in self.there for worker in self.workers(node)
            if os.readlink(f"/proc/{worker.pid}/fd/1").endswith(log)
        ]  # fmt: skip
        return found

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """For the length of a ``with`` block, with the environment of its begin."""
    with pytest.MonkeyPatch.context() as patch:
        be_patient(patch)
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.close()

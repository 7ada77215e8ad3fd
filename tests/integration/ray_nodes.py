"""Nodes of a Ray of this machine that come and go, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.integration.patient_ray import agent_ports, be_patient


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
        """At once, without notice or after one."""
        (self.there if node in self.there else self._leaving).remove(node)
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

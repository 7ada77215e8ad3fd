"""A Ray whose nodes are on machines of their own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tests.integration.machines import Machine, cut
from tests.integration.ray_training import SECONDS

RAY = (sys.executable, "-m", "tests.integration.patient_ray")
PORT = 6379
# Of what Ray starts beside a node: see `agent_ports`.
AGENTS = ("--dashboard-agent-grpc-port=6401", "--metrics-export-port=6402",
          "--dashboard-agent-listen-port=6403", "--runtime-env-agent-port=6404")  # fmt: skip


class RayMachines:
    """A head without slots, on which commands run, and two nodes with one slot each."""

    def __init__(self, folder: Path, all_of_them: list[Machine]) -> None:
        self._folder = folder
        self.head, *self.nodes = all_of_them
        self.address = f"{self.head.address}:{PORT}"
        self._up = {machine: self._start(machine) for machine in all_of_them}

    def _start(self, machine: Machine) -> subprocess.Popen[str]:
        """Start what Ray runs there, until it says that it is up."""
        role = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        if machine is not self.head:
            role = [f"--address={self.address}", "--num-cpus=1"]
        log = self._folder / f"{machine.name}.log"
        with log.open("w") as said:
            node = machine.start(
                *RAY, "start", "--block", f"--node-ip-address={machine.address}",
                f"--object-store-memory={150 * 2**20}", *role, *AGENTS,
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
            )  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return node

    def settle(self) -> None:
        """All are there and hear each other."""
        for machine in (self.head, *self.nodes):
            if self._up[machine].poll() is not None:
                machine.crash()
                self._up[machine] = self._start(machine)

    def cut_off(self, machine: Machine) -> AbstractContextManager[None]:
        """From all others, for the length of a ``with`` block."""
        return cut(machine, *{self.head, *self.nodes} - {machine})

    def has_ended(self, machine: Machine) -> bool:
        """What Ray runs there."""
        return self._up[machine].poll() is not None

"""A network that drops while a run trains under Ray on machines of their own: nothing that is sent
arrives any more, and nobody is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.integration.machines import Machine, cut, machines
from tests.integration.ray_training import SAME_AT_ANY_LENGTH, SECONDS, Training, Undisturbed

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3600, func_only=True)]

STEPS = 600
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
        for machine in self.nodes:
            if self._up[machine].poll() is not None:
                machine.crash()
                self._up[machine] = self._start(machine)

    def cut_off(self, machine: Machine) -> AbstractContextManager[None]:
        """From all others, for the length of a ``with`` block."""
        return cut(machine, *{self.head, *self.nodes} - {machine})

    def has_ended(self, machine: Machine) -> bool:
        """What Ray runs there."""
        return self._up[machine].poll() is not None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    made = Undisturbed(tmp_path_factory.mktemp("undisturbed"), *SAME_AT_ANY_LENGTH)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayMachines]:
    folder = tmp_path_factory.mktemp("machines")
    with machines(folder, "head", "one", "two") as made:
        yield RayMachines(folder, made)


@pytest.fixture
def training(whole: Undisturbed, tmp_path: Path, cluster: RayMachines) -> Training:
    cluster.settle()
    return Training(
        whole, str(tmp_path / "run"), cluster.address, f"train.max_steps={STEPS}",
        within=cluster.head.within,
    )  # fmt: skip


def test_a_network_that_is_back_after_5_seconds_costs_nothing(
    training: Training, cluster: RayMachines
) -> None:
    one, _ = cluster.nodes
    with training.started():
        training.until_step(30)
        with cluster.cut_off(one):
            time.sleep(5)
        said = training.ended()
    assert "workers are started again" not in said
    training.is_as_if_not(STEPS)


def test_workers_that_do_not_reach_each_other_are_started_again(
    training: Training, cluster: RayMachines
) -> None:
    """Ray reaches all of them, and sees nothing."""
    with training.started("cluster.timeout_seconds=30"):
        training.until_step(30)
        with cut(*cluster.nodes):
            training.until_said("started again in 1 s: an exchange between workers broke")
        training.ended()
    training.is_as_if_not(STEPS)


def test_workers_that_never_reach_each_other_again_end_the_run(
    training: Training, cluster: RayMachines
) -> None:
    limits = ("cluster.timeout_seconds=30", "cluster.max_failures=1")
    with training.started(*limits):
        training.until_step(30)
        with cut(*cluster.nodes):
            said = training.ended(code=1)
    assert said.count("workers are started again in") == 1
    with training.started(*limits):
        training.ended()
    training.is_as_if_not(STEPS)


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_that_is_cut_off_is_gone_and_writes_nothing_when_it_is_back(
    training: Training, cluster: RayMachines, which: int
) -> None:
    """With worker 0, who writes what is written once, and without."""
    lost = cluster.nodes[which]
    with training.started("cluster.num_workers={min: 1, max: 2}", "cluster.replace_seconds=3"):
        training.until_step(30)
        with cluster.cut_off(lost):
            training.until_said("resuming from the checkpoint of step")
        said = training.ended()
    assert "1 workers on cpu" in said
    training.is_as_if_not(STEPS)
    deadline = time.monotonic() + SECONDS
    while not cluster.has_ended(lost):  # told that it counts as lost
        assert time.monotonic() < deadline
        time.sleep(0.5)

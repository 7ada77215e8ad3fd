"""Nodes that go and come while a run trains: it finishes, and its course is that of an undisturbed
one.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from dist_embed.checkpoint.catalogue import list_steps
from tests.integration.conftest import Command
from tests.integration.run_metrics import metrics

pytestmark = [
    pytest.mark.heavy, pytest.mark.usefixtures("ray_alone_until_the_file_ends"),
    pytest.mark.timeout(1500, func_only=True),
]  # fmt: skip

STEPS = 300
SECONDS = 600.0  # for each thing that is waited for


class Nodes:
    """A head without slots, on which commands run, and nodes with one slot and an address each."""

    def __init__(self) -> None:
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self._cluster.address
        self.there: list[Any] = []
        self._count = 0

    def add(self) -> Any:
        self._count += 1
        node = self._cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{1 + self._count}")
        self.there.append(node)
        return node

    def remove(self, node: Any) -> None:
        """At once and without notice."""
        self.there.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: int) -> None:
        """As a machine's owner does who takes it away."""
        subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", self.address,
             "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
             "--reason-message", "a test", "--deadline-remaining-seconds", str(seconds)],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip

    def workers(self, node: Any) -> list[psutil.Process]:
        """The training processes of a node."""
        (raylet,) = [one.process.pid for one in node.all_processes["raylet"]]
        children = psutil.Process(raylet).children(recursive=True)
        return [one for one in children if "RayTrainWorker" in " ".join(one.cmdline())]

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(ray_alone_until_the_file_ends: None) -> Iterator[Nodes]:
    # Ray's workers are polite by default: on a busy machine they would get no turn.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    nodes = Nodes()
    yield nodes
    nodes.close()
    del os.environ["RAY_worker_niceness"]  # noqa: SIM112


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    """Two of them."""
    while len(cluster.there) < 2:
        cluster.add()
    yield cluster
    for node in cluster.there[:]:
        cluster.remove(node)


class Training:
    """Two equal runs: one that nothing befell, and one under Ray while nodes go and come."""

    def __init__(self, config: str, run: Command, folder: Path, nodes: Nodes) -> None:
        self.nodes = nodes
        self.run = folder / "run"
        self._whole = folder / "whole"
        self._command = [
            "train", config, f"data.uri={folder / 'data'}", "train.schedule=constant",
            "embedding.schedule=constant", "train.evaluate_every=100000",
            "checkpoint.every_steps=20", "model.dropout=0", f"train.max_steps={STEPS}",
            # Else rounding would grow over some hundred steps: tried, 3e-7 at 600, 0.02 at 1500.
            "train.learning_rate=0.00001", "embedding.learning_rate=0.0001",
        ]  # fmt: skip
        self._local = run
        self.said: list[str] = []

    def start(self, *settings: str, steps: int = 30) -> subprocess.Popen[str]:
        """The command, once it has made some steps."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dist_embed.cli.main", *self._command, f"run.uri={self.run}",
             "--launcher", "ray", f"cluster.address={self.nodes.address}", *settings],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        self.until(lambda: len(self.losses()) >= steps)
        return self.process

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def losses(self) -> dict[int, float]:
        return metrics(self.run)

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not reached():
            assert self.process.poll() is None, "\n".join(self.said)
            assert time.monotonic() < deadline, "\n".join(self.said)
            time.sleep(0.1)

    def has_said(self, text: str, times: int = 1) -> bool:
        return sum(text in line for line in self.said) >= times

    def ended(self, code: int = 0) -> str:
        assert self.process.wait(SECONDS) == code, "\n".join(self.said)
        return "\n".join(self.said)

    def is_as_if_not(self, steps: int = STEPS) -> None:
        """Each step of the course once, with the loss of the undisturbed run to rounding."""
        self._local(
            *self._command, f"run.uri={self._whole}", "--launcher", "local",
            f"train.max_steps={steps}",
        )  # fmt: skip
        whole, found = metrics(self._whole), self.losses()
        assert list(found) == list(whole) == list(range(1, steps + 1))
        for step, loss in whole.items():
            assert math.isclose(found[step], loss, rel_tol=1e-4), (step, found[step], loss)
        # What a step trains on, in words: the same sentences make the same number of them.
        assert metrics(self.run, "epoch") == metrics(self._whole, "epoch")
        assert list_steps(str(self.run))[-1] == steps


@pytest.fixture
def training(config: str, dist_embed: Command, tmp_path: Path, nodes: Nodes) -> Iterator[Training]:
    made = Training(config, dist_embed, tmp_path, nodes)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


FEWER = ("cluster.num_workers={min: 1, max: 2}", "cluster.replace_seconds=3")


def test_a_run_goes_on_with_fewer_workers_and_later_with_more(training: Training) -> None:
    process = training.start(*FEWER, "train.max_steps=100000")
    training.nodes.remove(training.nodes.there[0])
    training.until(lambda: training.has_said("resuming from the checkpoint of step"))
    training.nodes.add()
    training.until(lambda: training.has_said("there is room for 2 workers: the workers save"))
    training.until(lambda: training.has_said("2 workers on cpu", times=2))
    steps = len(training.losses())
    training.until(lambda: len(training.losses()) > steps + 20)
    process.terminate()
    said = training.ended(code=143)
    assert said.count("workers are started again in") == 1
    assert said.count("1 workers on cpu") == 1
    training.is_as_if_not(list_steps(str(training.run))[-1])


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_that_is_lost_and_replaced_after_90_seconds(training: Training, which: int) -> None:
    """Later than the minute that Ray Train waits for room; with worker 0 and without."""
    training.start("cluster.timeout_seconds=300")
    training.nodes.remove(training.nodes.there[which])
    training.until(lambda: training.has_said("waits for room: has 1 of 2 CPU slots, up to 300 s"))
    time.sleep(90)
    training.nodes.add()
    training.ended()
    training.is_as_if_not()


def test_a_node_that_dies_for_good_ends_the_run_in_time(training: Training) -> None:
    training.start("cluster.timeout_seconds=20")
    training.nodes.remove(training.nodes.there[0])
    training.until(lambda: training.has_said("waits for room: has 1 of 2 CPU slots, up to 20 s"))
    began = time.monotonic()
    said = training.ended(code=1)
    assert time.monotonic() - began < 60
    assert (
        "there was no room for 2 workers within 20 s (cluster.timeout_seconds): 1 of 2 CPU slots"
        in said
    )


def test_a_node_that_is_announced_to_go_costs_no_step(training: Training) -> None:
    training.start("cluster.max_failures=0")
    training.nodes.add()
    training.nodes.drain(training.nodes.there[0], 300)
    training.until(lambda: training.has_said("a node is about to be taken away: the workers save"))
    said = training.ended()
    saved = [line for line in training.said if line.startswith("asked to stop: saving step ")]
    assert f"resuming from the checkpoint of step {saved[0].split()[-1]}" in said
    assert "workers are started again" not in said
    training.is_as_if_not()


@pytest.mark.parametrize("seed", range(20))
def test_seeded_disturbances(training: Training, seed: int) -> None:
    """Workers and nodes, those with worker 0 too, at any moment, while saving too."""
    chance = random.Random(seed)
    training.start(*FEWER, "checkpoint.every_steps=5", steps=chance.randrange(1, 60))
    for _ in range(chance.randrange(1, 3)):
        nodes = training.nodes
        node = chance.choice(nodes.there)
        what = chance.choice(["kill", "terminate", "suspend", "remove", "drain"])
        if what in ("kill", "terminate"):
            for worker in nodes.workers(node):
                getattr(worker, what)()
        elif what == "suspend":
            for worker in nodes.workers(node):
                worker.suspend()
                time.sleep(chance.uniform(0, 2))
                worker.resume()
        elif what == "remove":
            nodes.remove(node)
            nodes.add()
        else:
            nodes.add()
            nodes.drain(node, 60)
        time.sleep(chance.uniform(0, 20))
        if training.process.poll() is not None:
            break
    training.ended()
    training.is_as_if_not()

"""A network that drops while a run trains under Ray on machines of their own: nothing that is sent
arrives any more, and nobody is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machines import Machine, cut, machines
from tests.integration.ray_machines import RayMachines
from tests.integration.ray_training import SAME_AT_ANY_LENGTH, SECONDS, Training, Undisturbed

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3600, func_only=True)]

STEPS = 600


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
    return training_on(cluster.head, whole, tmp_path, cluster)


def training_on(
    machine: Machine, whole: Undisturbed, folder: Path, cluster: RayMachines
) -> Training:
    """A run whose command is there."""
    cluster.settle()
    return Training(
        whole, str(folder / "run"), cluster.address, f"train.max_steps={STEPS}",
        within=machine.within,
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


def test_without_its_head_a_run_ends_and_goes_on_under_another(
    whole: Undisturbed, tmp_path: Path, cluster: RayMachines
) -> None:
    """The command is on a node that is there still, as both workers are."""
    training = training_on(cluster.nodes[0], whole, tmp_path, cluster)
    with training.started():
        training.until_step(30)
        cluster.head.crash()
        said = training.ended(code=1)
    assert "the same command goes on" in said
    assert "Traceback" not in said
    deadline = time.monotonic() + SECONDS
    while not all(map(cluster.has_ended, cluster.nodes)):  # as Ray ends them without a head
        assert time.monotonic() < deadline
        time.sleep(0.5)
    cluster.settle()
    with training.started():
        training.ended()
    training.is_as_if_not(STEPS)

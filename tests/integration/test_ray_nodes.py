"""Nodes that go and come while a run trains: it finishes, and its course is that of an undisturbed
one.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Command, tiny_config
from tests.integration.prepared_files import prepared_files
from tests.integration.ray_nodes import Nodes, ray_nodes
from tests.integration.ray_training import SAME_AT_ANY_LENGTH, Training, Undisturbed

pytestmark = [
    pytest.mark.heavy, pytest.mark.usefixtures("ray_alone_until_the_file_ends"),
    pytest.mark.timeout(3600, func_only=True),
]  # fmt: skip

STEPS = 300
FEWER = ("cluster.num_workers={min: 1, max: 2}", "cluster.replace_seconds=3")


@pytest.fixture(scope="module")
def cluster(ray_alone_until_the_file_ends: None) -> Iterator[Nodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    made = Undisturbed(tmp_path_factory.mktemp("undisturbed"), *SAME_AT_ANY_LENGTH)
    made.prepare()
    return made


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """Two of them."""
    cluster.settle(2)
    return cluster


@pytest.fixture
def training(whole: Undisturbed, tmp_path: Path, nodes: Nodes) -> Training:
    return Training(whole, str(tmp_path / "run"), nodes.address, f"train.max_steps={STEPS}")


def test_a_run_goes_on_with_fewer_workers_and_later_with_more(
    training: Training, nodes: Nodes
) -> None:
    with training.started(*FEWER, "train.max_steps=100000") as process:
        training.until_step(30)
        nodes.remove(nodes.there[0])
        training.until_said("resuming from the checkpoint of step")
        nodes.add()
        training.until_said("there is room for 2 workers: the workers save")
        training.until_said("2 workers on cpu", times=2)
        training.until_step(max(training.losses()) + 20)
        process.terminate()
        said = training.ended(code=143)
    assert said.count("workers are started again in") == 1
    assert said.count("1 workers on cpu") == 1
    training.is_as_if_not()


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_that_is_lost_and_replaced_after_90_seconds(
    training: Training, nodes: Nodes, which: int
) -> None:
    """Later than the minute that Ray Train waits for room; with worker 0 and without."""
    with training.started("cluster.timeout_seconds=300"):
        training.until_step(30)
        nodes.remove(nodes.there[which])
        training.until_said("waits for room: has 1 of 2 CPU slots, up to 300 s")
        time.sleep(90)
        nodes.add()
        training.ended()
    training.is_as_if_not(STEPS)


def test_a_node_that_dies_for_good_ends_the_run_in_time(training: Training, nodes: Nodes) -> None:
    with training.started("cluster.timeout_seconds=20"):
        training.until_step(30)
        nodes.remove(nodes.there[0])
        training.until_said("waits for room: has 1 of 2 CPU slots, up to 20 s")
        began = time.monotonic()
        said = training.ended(code=1)
        assert time.monotonic() - began < 120
    assert (
        "there was no room for 2 workers within 20 s (cluster.timeout_seconds): 1 of 2 CPU slots"
        in said
    )


def test_a_node_that_is_announced_to_go_costs_no_step(training: Training, nodes: Nodes) -> None:
    with training.started("cluster.max_failures=0"):
        training.until_step(30)
        nodes.add()
        nodes.drain(nodes.there[0], 300)
        training.until_said("a node is about to be taken away: the workers save")
        said = training.ended()
    saved = [
        line for line in training.said if line.startswith("the workers stop here: saving step ")
    ]
    assert f"resuming from the checkpoint of step {saved[0].split()[-1]}" in said
    assert "workers are started again" not in said
    training.is_as_if_not(STEPS)


def test_a_node_that_goes_as_announced_while_workers_start_is_no_failure(
    training: Training, nodes: Nodes
) -> None:
    node = nodes.there[0]
    with training.started("cluster.max_failures=0"):
        training.until(lambda: bool(nodes.workers(node)))
        for worker in nodes.workers(node):
            worker.suspend()  # so that it has not begun when the node goes
        assert not training.starts()
        nodes.add()
        nodes.drain(node, 60)
        time.sleep(3)  # in which the launcher hears of it
        nodes.remove(node)
        said = training.ended()
    assert "s: a node was taken away before the workers had saved" in said
    training.is_as_if_not(STEPS)


def test_a_node_that_is_lost_while_data_are_prepared(
    training: Training, nodes: Nodes, dist_embed: Command, tmp_path: Path
) -> None:
    """What it had begun is begun again, and the bytes are those of one machine."""
    data = ("data.synthetic.sentences=6000", "data.shard_sentences=20")
    there = ("data.num_processes=0", f"data.uri={tmp_path / 'data'}")
    with training.started(*data, *there, "train.max_steps=5"):
        training.until(lambda: len(list((tmp_path / "data").glob("*/finished/train/*"))) >= 3)
        assert not (tmp_path / "data" / "data.json").exists()
        nodes.remove(nodes.there[0])
        nodes.add()
        training.ended()
    here = f"data.uri={tmp_path / 'here'}"
    dist_embed("prepare", tiny_config(tmp_path), *data, here, "cluster.launcher=local")
    assert prepared_files(tmp_path / "data") == prepared_files(tmp_path / "here")


def test_a_worker_that_stands_still_is_named_and_replaced(training: Training, nodes: Nodes) -> None:
    """Not worker 0: with it stands still the store in which the others tell of it."""
    with training.started("cluster.hang_seconds=5", "cluster.timeout_seconds=30"):
        training.until_step(30)
        nodes.worker(1).suspend()
        training.until_said("worker 1 makes no progress in step ")
        training.until_said("workers are started again in 1 s")
        said = training.ended()
    named = (
        r"worker 1 makes no progress in step \d+, [a-z ]+; it has been here since [\d:]+ UTC and "
    )
    assert re.search(named + r"has not answered of late:\n  File ", said), said
    training.is_as_if_not(STEPS)


def test_a_worker_without_memory_ends_the_run_with_its_own_error(
    training: Training, nodes: Nodes, tmp_path: Path
) -> None:
    """It would come again: nothing is started anew."""
    large = (
        "tokenizer.kind=word", "tokenizer.oov_buckets=2000000", "model.output=sampled",
        "model.num_samples=32", "model.share_embeddings=decoder", f"data.uri={tmp_path / 'data'}",
    )  # fmt: skip
    with training.started(*large, "checkpoint.every_steps=200"):
        training.until_step(5)
        worker = nodes.worker(1)
        # Steps have what they need; the copy that a save is made from takes 64 MiB.
        limit = vm_data(worker) + 24 * 2**20
        worker.rlimit(psutil.RLIMIT_DATA, (limit, limit))
        said = training.ended(code=1)
    assert re.search(r"worker 1 failed:\nTraceback ", said), said
    assert "allocate memory" in said
    assert "workers are started again" not in said


def vm_data(process: psutil.Process) -> int:
    """What RLIMIT_DATA counts."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (found,) = re.findall(r"VmData:\s*(\d+) kB", status)
    return int(found) * 1024


@pytest.mark.parametrize("seed", range(5))
def test_seeded_disturbances(training: Training, nodes: Nodes, seed: int) -> None:
    """Four each, of workers and nodes, those with worker 0 too: in steps, while saving, and while
    the workers of the one before start again.
    """
    chance = random.Random(seed)
    steps = sorted(chance.sample(range(1, STEPS - 50), 4))
    ended: list[int] = []  # the numbers of starts that came to an end
    often = ("checkpoint.every_steps=5", "cluster.max_failures=20", "train.max_steps=100000")
    with training.started(*FEWER, *often) as process:
        for step in steps:
            if step == steps[0] or chance.random() < 0.7:
                # What was not to fall into a start had one end each time.
                training.until(lambda: training.starts() > max(ended, default=0))
                training.until_step(step)
            else:
                time.sleep(chance.uniform(0, 20))
            ended.append(disturb(training, nodes, chance))
        training.until(lambda: training.starts() > max(ended))
        training.until_step(max(max(training.losses(), default=0) + 20, STEPS))
        process.terminate()
        training.ended(code=143)
    training.is_as_if_not()


def disturb(training: Training, nodes: Nodes, chance: random.Random) -> int:
    """Something befalls the workers of a node; where there are none at the moment, they are waited
    for. Returns how many starts there had been, where it ends one, else 0.
    """
    what = chance.choice(["kill", "terminate", "suspend", "remove", "drain"])
    while True:
        training.until(lambda: any(nodes.workers(node) for node in nodes.there))
        node = chance.choice([one for one in nodes.there if nodes.workers(one)] or nodes.there)
        starts = training.starts()
        if what == "remove":
            nodes.remove(node)
            nodes.add()
            return starts
        if what == "drain":
            nodes.add()
            nodes.drain(node, 60)
            return starts
        hit = False
        for worker in nodes.workers(node):
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if what == "suspend":
                    worker.suspend()
                    hit = True
                    time.sleep(chance.uniform(0, 2))
                    worker.resume()
                else:
                    getattr(worker, what)()
                    hit = True
        if hit:
            return 0 if what == "suspend" else starts

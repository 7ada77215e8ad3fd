"""A node that goes while a run under Ray saves to an object store, which takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import s3fs

from dist_embed.checkpoint.catalogue import list_steps
from tests.integration.ray_nodes import Nodes, ray_nodes
from tests.integration.ray_training import SAME_AT_ANY_LENGTH, SECONDS, Training, Undisturbed
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.s3_server import MotoServer, environment

pytestmark = [
    pytest.mark.heavy, pytest.mark.usefixtures("ray_alone_until_the_file_ends"),
    pytest.mark.timeout(3600, func_only=True),
]  # fmt: skip

STEPS = 300


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """In front of a store, that this process and all that it starts find."""
    with (
        MotoServer(tmp_path_factory.mktemp("moto")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        server.make_bucket()
        with FaultProxy(server.url) as made:
            for name, value in environment(made.url).items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            yield made
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def cluster(ray_alone_until_the_file_ends: None, proxy: FaultProxy) -> Iterator[Nodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    made = Undisturbed(tmp_path_factory.mktemp("undisturbed"), *SAME_AT_ANY_LENGTH)
    made.prepare()
    return made


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_that_is_lost_while_a_save_is_under_way(
    whole: Undisturbed, cluster: Nodes, proxy: FaultProxy, which: int
) -> None:
    """The step that was being saved is no checkpoint; the run goes on from the one before."""
    cluster.settle(2)
    run = f"s3://bucket/run-{which}"
    training = Training(whole, run, cluster.address, f"train.max_steps={STEPS}")
    begun, go_on = threading.Event(), threading.Event()

    def stand_still(request: object) -> None:
        begun.set()
        go_on.wait(SECONDS)

    with training.started():
        training.until(lambda: bool(list_steps(run)))
        fault = proxy.add(Fault("PUT", r"/chunk-", times=None, call=stand_still))
        try:
            training.until(begun.is_set)
            before = list_steps(run)
            cluster.remove(cluster.there[which])
            training.until_said("workers are started again in 1 s")
        finally:
            go_on.set()
            proxy.remove(fault)
        cluster.add()
        training.until_said("resuming from the checkpoint of step")
        training.ended()
    resumed = [line for line in training.said if line.startswith("resuming from the checkpoint")]
    assert resumed == [f"resuming from the checkpoint of step {before[-1]}"]
    training.is_as_if_not(STEPS)

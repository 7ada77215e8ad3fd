"""Workers started and supervised by Ray Train, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dist_embed.cluster.failure import Failures
from dist_embed.cluster.feed import Feed
from dist_embed.cluster.ray_connection import connected
from dist_embed.cluster.ray_course import Course
from dist_embed.cluster.ray_fit import Mail, Surroundings
from dist_embed.cluster.ray_group import GroupByEnvironment
from dist_embed.cluster.ray_mailbox import RayMailbox
from dist_embed.cluster.ray_room import Room
from dist_embed.cluster.ray_worker import work, work_for
from dist_embed.observe.events import Event
from dist_embed.parallel.settings import DeviceChoice
from dist_embed.parallel.stop import stop_on_signals
from dist_embed.storage.temporary import temporary_folder


class _Trainer(DataParallelTrainer):
    """Without two processes that Ray Train (2.60) starts with the workers of every start, each of
    which takes seconds of a core: one for data sets of Ray's, which we have none of, and one that
    gives free the slots of a controller that was killed, as `end_controllers` does.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, DatasetsCallback | PlacementGroupCleanerCallback)
        ]


def launch_ray(
    target: Callable[..., Any],
    arguments: Callable[[str], tuple[Any, ...]],
    *,
    name: str,
    min_workers: int,
    max_workers: int,
    address: str | None,
    device: DeviceChoice,
    timeout_seconds: float,
    replace_seconds: float,
    max_failures: int,
    on_event: Callable[[Event], None],
    log_folder: str,
    stop_seconds: float = 0.0,
    feed: Feed | None = None,
) -> Any:
    """Run ``target(*arguments(device), emit)`` in Ray Train workers; returns worker 0's result.

    Workers that are lost, or fail in a way that may pass, are started again, as many as there is
    room for. So are those that can be more, and those of a node that is about to be taken away:
    they are asked to stop first.

    Args:
        target: importable on every node.
        arguments: its arguments, which can be pickled, for workers on ``cpu`` or ``cuda``.
        name: what Ray calls the run, on its dashboard and in its metrics.
        min_workers: W at least, and
        max_workers: at most.
        address: cluster to use; None: a Ray of our own on this machine.
        device: ``auto``: CUDA where the cluster has GPUs.
        timeout_seconds: bound of every exchange between workers, and of the wait for room for them.
        replace_seconds: how long lost workers are waited for before fewer go on.
        max_failures: times the workers are started again after a failure, see `Failures`.
        on_event: takes worker 0's events.
        log_folder: named in error messages.
        stop_seconds: a signal that asks this process to stop is passed on to the workers, which
            get this long to end by themselves; 0: it ends the process at once.
        feed: then it is ``target(*arguments(device), emit, receive)``, where worker 0 receives what
            that answers.

    Raises:
        UserError: a worker raised one, or the cluster has too little for the workers.
        RunFailed: a worker failed or was lost, or there was no room; NodeLost: nor is there Ray.
        RunStopped: asked to stop while no workers trained.
    """
    with (
        # Workers write there until the connection ends.
        temporary_folder("dist_embed-ray-") as storage_path,
        connected(address, max_workers, name) as node,
    ):
        room = Room(
            min_workers, max_workers, timeout_seconds=timeout_seconds,
            replace_seconds=replace_seconds,
        )  # fmt: skip
        around = Surroundings(node, room, on_event, stop_seconds, feed)
        said: list[str] = []
        around.aside(lambda rest: room.choose(device, said.append), node.check)
        for line in said:
            around.say(line)
        use_gpu = room.kind == "GPU"
        mailbox = _mailbox(around)

        def trainer(workers: int, number: int) -> DataParallelTrainer:
            return _Trainer(
                work,
                train_loop_config=work_for(
                    target,
                    arguments("cuda" if use_gpu else "cpu"),
                    mailbox,
                    number,
                    name,
                    receives=feed is not None,
                ),
                backend_config=GroupByEnvironment(),
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
                run_config=_run_config(name if number == 0 else f"{name}-{number}", storage_path),
            )

        with stop_on_signals() if stop_seconds else nullcontext():
            mail = Mail(mailbox, node)
            course = Course(trainer, mail, around, Failures(max_failures), log_folder)
            return course.run(max_workers)


def _mailbox(around: Surroundings) -> Any:
    """Where workers leave what they tell: on this node, whose end is the command's too."""
    # Not softly: a node that Ray had just started was passed over for another one, which may be
    # lost (Ray 2.60).
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(RayMailbox)
    # Its class goes by the head, as the function of a first task does (Ray 2.60).
    return around.aside(lambda rest: actor.remote(), around.node.check)


def _run_config(name: str, storage_path: str) -> RunConfig:
    return RunConfig(
        name=name,
        storage_path=storage_path,
        # What follows from a failure is decided here.
        failure_config=FailureConfig(
            max_failures=0,
            controller_failure_limit=0,
            max_preemption_failures=0,
        ),
    )

"""Workers started and supervised by Ray Train, on this machine or on a cluster."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
import ray.train
from ray._private import worker
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dist_embed.cluster.failure import Failures
from dist_embed.cluster.feed import Feed
from dist_embed.cluster.ray_address import why_no_answer
from dist_embed.cluster.ray_aside import END_SECONDS, POLL_SECONDS
from dist_embed.cluster.ray_course import Course
from dist_embed.cluster.ray_fit import Mail, Surroundings
from dist_embed.cluster.ray_group import GroupByEnvironment
from dist_embed.cluster.ray_head import HeadFailed, own_ray
from dist_embed.cluster.ray_mailbox import RayMailbox
from dist_embed.cluster.ray_node import Node, quiet_node
from dist_embed.cluster.ray_private import private_ray, ray_settings
from dist_embed.cluster.ray_room import Room
from dist_embed.cluster.ray_worker import work, work_for
from dist_embed.errors import RunFailed, UserError
from dist_embed.observe.events import Event
from dist_embed.parallel.settings import DeviceChoice
from dist_embed.parallel.stop import end_abruptly, handled_here, stop_on_signals
from dist_embed.parallel.threads import WaitedThread
from dist_embed.storage.temporary import temporary_folder

CONNECT_SECONDS = 10.0
INIT_SECONDS = 300.0  # Ray's own limits are below
# Without its head Ray (2.60, rpc_client.h) ends a process that is connected after 60 s, with a line
# of its own. Its nodes end then too, which is noticed here, and told.
_WITHOUT_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}


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
        # On this node, whose end is the command's too. Not softly: a node that Ray had just started
        # was passed over for another one, which may be lost (Ray 2.60).
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(RayMailbox)
        # Its class goes by the head, as the function of a first task does (Ray 2.60).
        mailbox = around.aside(lambda rest: actor.remote(), node.check)

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


@contextmanager
def connected(address: str | None, num_workers: int, name: str = "") -> Iterator[Node]:
    """A connection to a cluster, or to a Ray of our own for the length of the block.

    Args:
        address: of the cluster; None: a Ray of our own.
        num_workers: for which that has slots.
        name: what the page of the connection on Ray's dashboard shows; a job that was submitted
            has one.

    Raises:
        UserError: this process is connected already; no cluster answers at the address, or one of
            another version.
        RunFailed: a Ray of our own did not start, or does not answer.
    """
    if ray.is_initialized():
        raise UserError(
            "this process is connected to a Ray already, and a run connects by itself: call "
            "ray.shutdown() first"
        )
    if address:
        if why := why_no_answer(address):
            raise UserError(
                f"no Ray cluster answers at {address!r} (cluster.address or RAY_ADDRESS): {why}"
            )
        with (
            ray_settings(_WITHOUT_HEAD),
            quiet_node(),
            _driver(address, name, is_own=False) as node,
        ):
            yield node
        return
    # As many CPU slots as workers: more workers than cores is slow, not wrong.
    cores = max(os.cpu_count() or 1, num_workers)
    try:
        with (
            private_ray(), own_ray(cores) as where, ray_settings(_WITHOUT_HEAD), quiet_node(),
            _driver(where, name, is_own=True) as node,
        ):  # fmt: skip
            yield node
    except HeadFailed as exc:
        raise RunFailed(f"no Ray could be started on this machine: {exc}") from exc


class _Job(JobConfig):
    """Workers look for modules where this process does. Ray (2.60, worker.py:connect) has them look
    into the working folder first, where a user's `tokenizers.py` may stand.
    """

    def _serialize(self) -> str:
        ours = {os.path.abspath(path) for path in sys.path}
        theirs: list[str] = self._py_driver_sys_path
        theirs[:] = [path for path in theirs if path in ours]
        serialized: str = super()._serialize()
        return serialized


@contextmanager
def _driver(address: str, name: str, *, is_own: bool) -> Iterator[Node]:
    """This process as a driver of the Ray at an address; gives the node that it is connected to."""
    failed: list[Exception] = []
    node: Node | None = None

    def connect() -> None:
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR,
                job_config=_Job(metadata={"job_name": name} if name else None),
            )  # fmt: skip
        except Exception as exc:  # handed to the caller
            failed.append(exc)

    # In a thread: in the main one a signal would break off what cannot be taken up again.
    logging.getLogger("ray").setLevel(logging.ERROR)
    thread = WaitedThread(target=connect, daemon=True)
    try:
        # Ray's handler of SIGTERM prints a trace, and sets an alarm that aborts 3 s later (2.60,
        # C++, in whichever thread it is connected).
        with handled_here():
            give_up_at = time.monotonic() + INIT_SECONDS
            try:
                thread.start()
                while thread.is_alive() and time.monotonic() < give_up_at:
                    thread.join(POLL_SECONDS)
            finally:
                thread.join(CONNECT_SECONDS)
        if thread.is_alive():
            raise RunFailed(f"Ray at {address} has not answered within {INIT_SECONDS:.0f} s")
        if failed:
            raise _not_connected(address, failed[0], is_own=is_own) from failed[0]
        for library in ("ray", "ray.train", "ray.data", "ray.tune"):
            logging.getLogger(library).setLevel(logging.ERROR)
        node = Node()
        yield node
    finally:
        # To a node that is gone Ray cannot say goodbye, and ends this process before we have told
        # why (2.60, raylet_ipc_client.cc).
        if node is None or node.lives():
            _disconnect()


def _not_connected(address: str, error: Exception, *, is_own: bool) -> Exception:
    """What is raised of what `ray.init` has raised."""
    if not isinstance(error, ConnectionError | RayError | ValueError | RuntimeError):
        return error
    if is_own:
        return RunFailed(f"the Ray that was started on this machine does not answer: {error}")
    if "Version mismatch" in str(error):  # Ray 2.60, _private/utils.py:check_version_info
        told = " ".join(str(error).split())
        return UserError(f"the Ray cluster at {address} is of another version: {told}")
    return UserError(f"no Ray cluster answers at {address}: {error}")


def _disconnect() -> None:
    """Say goodbye to Ray, or leave without it: a head that stands still does not answer that either
    (2.60: not within 150 s), and the interpreter's end would wait for it again, or crash.
    """
    thread = WaitedThread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(END_SECONDS)
    if thread.is_alive():
        atexit.unregister(worker.shutdown)
        end_abruptly()

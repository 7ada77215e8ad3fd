"""Workers started and supervised by Ray Train, on this machine or on a cluster."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import ray
import ray.train
import ray.util
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dist_embed.cluster.failure import (
    Attempts,
    asked_to_stop,
    failure_event,
    raise_failure,
    stopped_too_late,
)
from dist_embed.cluster.ray_address import why_no_answer
from dist_embed.cluster.ray_group import GroupByEnvironment
from dist_embed.cluster.ray_head import HeadFailed, own_ray
from dist_embed.cluster.ray_metrics import also_as_gauges
from dist_embed.cluster.ray_node import Node, NodeLost, quiet_node
from dist_embed.cluster.ray_private import private_ray
from dist_embed.errors import RunFailed, RunStopped, UserError
from dist_embed.observe.events import Event
from dist_embed.parallel.settings import DeviceChoice
from dist_embed.parallel.stop import (
    handle_again,
    request_stop,
    stop_on_signals,
    stop_requested,
)
from dist_embed.storage.temporary import temporary_folder

POLL_SECONDS = 1.0
MAILBOX_SECONDS = 60.0
CONNECT_SECONDS = 10.0
END_SECONDS = 20.0  # that what runs the workers may take to end
INIT_SECONDS = 300.0  # Ray's own limits are below
START_SECONDS = 60.0  # that Ray Train waits for room for all workers before it tries again


class _Mailbox:
    """Actor between workers and launcher, wherever they run: events go one way, the request to
    stop goes the other.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = False

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._stop = True

    def is_stopped(self) -> bool:
        return self._stop


class _Deliveries:
    """The mailbox as the launcher sees it: its events, each once."""

    def __init__(self, mailbox: Any, node: Node) -> None:
        self._mailbox = mailbox
        self._node = node
        self._asked: Any = None

    def take(self) -> list[Event]:
        """Those that have come since, or none where Ray is too busy to answer yet.

        Raises NodeLost, and RunFailed where the mailbox is gone.
        """
        give_up_at = time.monotonic() + MAILBOX_SECONDS
        while time.monotonic() < give_up_at:
            self._node.check()
            if self._asked is None:
                self._asked = self._mailbox.take.remote()
            try:
                events: list[Event] = ray.get(self._asked, timeout=POLL_SECONDS)
            except GetTimeoutError:  # the answer, which nobody else gets, is asked for again
                continue
            except RayError as exc:
                self._node.check()
                raise RunFailed(f"the launcher has lost its workers: {exc}") from exc
            self._asked = None
            return events
        return []


def launch_ray(
    target: Callable[..., Any],
    arguments: Callable[[str], tuple[Any, ...]],
    *,
    name: str,
    num_workers: int,
    address: str | None,
    device: DeviceChoice,
    timeout_seconds: float,
    max_failures: int,
    on_event: Callable[[Event], None],
    log_folder: str,
    stop_seconds: float = 0.0,
) -> Any:
    """Run ``target(*arguments(device), emit)`` in Ray Train workers; returns worker 0's result.

    Args:
        target: importable on every node.
        arguments: its arguments, which can be pickled, for workers on ``cpu`` or ``cuda``.
        name: what Ray calls the run, on its dashboard and in its metrics.
        num_workers: W.
        address: cluster to use; None: a Ray of our own on this machine.
        device: ``auto``: CUDA where the cluster has a GPU for every worker.
        timeout_seconds: bound of every exchange between workers, and of the wait for room for them.
        max_failures: times Ray starts the workers again after a failure that may pass.
        on_event: takes worker 0's events.
        log_folder: named in error messages.
        stop_seconds: a signal that asks this process to stop is passed on to the workers, which
            get this long to end by themselves; 0: it ends the process at once.

    Raises:
        UserError: a worker raised one, or the cluster has too little for the workers.
        RunFailed: a worker failed or was lost.
        RunStopped: asked to stop while no workers had begun.
    """
    with (
        # Workers write there until the connection ends.
        temporary_folder("dist_embed-ray-") as storage_path,
        connected(address, num_workers) as node,
    ):
        use_gpu = device == "cuda" or (
            device == "auto" and ray.cluster_resources().get("GPU", 0) >= num_workers
        )
        _check_resources(num_workers, use_gpu)
        # On this node, whose end is the command's too; without CPUs Ray would choose any.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()
        attempts = Attempts()
        deliveries = _Deliveries(mailbox, node)

        def deliver() -> None:
            for event in deliveries.take():
                shown = attempts.take(event)
                if shown is not None:
                    on_event(shown)

        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={
                "target": target,
                "args": arguments("cuda" if use_gpu else "cpu"),
                "mailbox": mailbox,
                "name": name,
            },
            torch_config=GroupByEnvironment(),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=name,
                storage_path=storage_path,
                failure_config=FailureConfig(
                    max_failures=max_failures,
                    # Each is a wait of a minute for room for the workers.
                    controller_failure_limit=math.ceil(timeout_seconds / START_SECONDS),
                ),
            ),
        )
        with stop_on_signals() if stop_seconds else nullcontext():
            outcome = _fit_in_thread(
                trainer, attempts, deliver, on_event, mailbox.stop.remote, stop_seconds
            )
    if any(failure["is_cause"] for failure in attempts.failures):
        raise_failure(attempts.failures, log_folder)
    if outcome is not None:  # nobody lived to tell
        raise RunFailed(
            f"a worker was lost, or found no room: {outcome}\n(worker logs: {log_folder})"
        )
    if not attempts.results:
        if attempts.failures:
            raise_failure(attempts.failures, log_folder)
        raise RunFailed(f"the workers have ended, but told no result (worker logs: {log_folder})")
    return attempts.results[-1]


def _fit_in_thread(
    trainer: TorchTrainer,
    attempts: Attempts,
    deliver: Callable[[], None],
    show: Callable[[Event], None],
    ask_to_stop: Callable[[], Any],
    stop_seconds: float,
) -> Exception | None:
    """Run the trainer while events are delivered; returns what it raised.

    A failure that would come again, and any of workers that were asked to stop, is not left to Ray,
    which starts workers again after any: what runs them is ended, they with it, and this returns.

    Raises:
        RunFailed: asked to stop, the workers did not in time.
        RunStopped: asked to stop while no workers had begun, for the first time or again.
        NodeLost: Ray is not there any more.
    """
    stop_until: float | None = None
    is_lost = False
    outcome: list[Exception] = []

    def has_failed() -> bool:  # with no other try wanted
        return attempts.is_final or (stop_until is not None and bool(attempts.failures))

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as exc:  # handed to the caller
            outcome.append(exc)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            had_failed = has_failed()
            deliver()
            if had_failed and has_failed():  # others had their time to tell
                return None
            if stop_seconds and stop_requested() and stop_until is None:
                stop_until = time.monotonic() + stop_seconds
                ask_to_stop()
                show(asked_to_stop())  # afterwards: a terminal may stand still
                if not attempts.are_under_way and not attempts.is_final:  # for want of room
                    raise RunStopped("stopped as asked, before the workers had begun")
            if stop_until is not None and time.monotonic() > stop_until:
                raise RunFailed(stopped_too_late(stop_seconds))
        deliver()
        return outcome[0] if outcome else None
    except NodeLost:
        is_lost = True
        raise
    finally:
        if thread.is_alive() and not is_lost:
            # A thread that asks Ray for anything while the connection ends, ends this process with
            # exit code 1 and no message of ours (Ray 2.60, core_worker_process.cc:1109). By a
            # thread: of a cluster that does not answer Ray waits a minute, deaf to signals.
            given_up = threading.Event()
            ending = threading.Thread(target=_end_fit, args=(thread, given_up), daemon=True)
            ending.start()
            thread.join(END_SECONDS)
            given_up.set()
            ending.join(END_SECONDS)  # it asks Ray too


def _end_fit(thread: threading.Thread, given_up: threading.Event) -> None:
    """End the controller that ``thread`` waits for, which may be there only by and by."""
    while thread.is_alive() and not given_up.is_set():
        with suppress(Exception):
            _end_controller()
        thread.join(POLL_SECONDS)


def _end_controller() -> None:
    """End the actor by which Ray Train runs the workers, and they with it: `fit` then returns.

    Ray Train has no way to be told; what is used here is what `ray.kill` does (Ray 2.60).
    """
    from ray._private import state, worker

    connection = worker.global_worker
    for name, actor in state.actors(job_id=connection.current_job_id).items():
        if actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
            connection.core_worker.kill_actor(ray.ActorID.from_hex(name), True)


def _ray_worker(loop_config: dict[str, Any]) -> None:
    mailbox = loop_config["mailbox"]
    rank = ray.train.get_context().get_world_rank()

    # Train V2 makes a new one for each start of the workers. (Its name of an attempt is private.)
    group = ray.util.get_current_placement_group()
    assert group is not None
    attempt = group.id.hex()

    def emit(event: Event) -> None:
        mailbox.put.remote(event)

    def tell(event: Event) -> None:
        ray.get(mailbox.put.remote(event | {"attempt": attempt}), timeout=MAILBOX_SECONDS)

    tell({"kind": "begin"})
    ended = threading.Event()
    if rank == 0:  # one worker that knows is enough
        threading.Thread(target=_listen_for_stop, args=(mailbox, ended), daemon=True).start()
    try:
        told = also_as_gauges(emit, loop_config["name"])
        value = loop_config["target"](*loop_config["args"], told)
    except Exception as exc:
        tell(failure_event(rank, exc))
        raise
    finally:
        ended.set()
    if rank == 0:
        tell({"kind": "result", "value": value})


def _listen_for_stop(mailbox: Any, ended: threading.Event) -> None:
    while not ended.wait(POLL_SECONDS):
        try:
            if ray.get(mailbox.is_stopped.remote(), timeout=MAILBOX_SECONDS):
                request_stop()
                return
        except ActorDiedError:  # without a launcher nobody asks
            return
        except RayError:  # it has not answered this time
            continue


@contextmanager
def connected(address: str | None, num_workers: int) -> Iterator[Node]:
    """A connection to a cluster, or to a Ray of our own for the length of the block."""
    if address:
        if why := why_no_answer(address):
            raise UserError(
                f"no Ray cluster answers at {address!r} (cluster.address or RAY_ADDRESS): {why}"
            )
        with quiet_node(), _driver(address) as node:
            yield node
        return
    # As many CPU slots as workers: more workers than cores is slow, not wrong.
    cores = max(os.cpu_count() or 1, num_workers)
    try:
        with private_ray(), own_ray(cores) as where, quiet_node(), _driver(where) as node:
            yield node
    except HeadFailed as exc:
        raise RunFailed(f"no Ray could be started on this machine: {exc}") from exc


@contextmanager
def _driver(address: str) -> Iterator[Node]:
    """This process as a driver of the Ray at an address; gives the node that it is connected to."""
    failed: list[Exception] = []
    node: Node | None = None

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as exc:  # handed to the caller
            failed.append(exc)

    # In a thread: in the main one a signal would break off what cannot be taken up again.
    logging.getLogger("ray").setLevel(logging.ERROR)
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    try:
        try:
            give_up_at = time.monotonic() + INIT_SECONDS
            while thread.is_alive() and time.monotonic() < give_up_at:
                thread.join(POLL_SECONDS)
        finally:
            thread.join(CONNECT_SECONDS)
            if threading.current_thread() is threading.main_thread():
                # Ray has put a handler of SIGTERM in front of ours, which prints a trace and sets
                # an alarm that aborts 3 s later (2.60, C++, in whichever thread it is connected).
                handle_again()
        if thread.is_alive():
            raise RunFailed(f"Ray at {address} has not answered within {INIT_SECONDS:.0f} s")
        if failed:
            if isinstance(failed[0], ConnectionError | RayError | ValueError | RuntimeError):
                raise UserError(f"no Ray cluster answers at {address}: {failed[0]}") from failed[0]
            raise failed[0]
        for name in ("ray", "ray.train", "ray.data", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        node = Node()
        yield node
    finally:
        # To a node that is gone Ray cannot say goodbye, and ends this process before we have told
        # why (2.60, raylet_ipc_client.cc).
        if node is None or node.lives():
            ray.shutdown()


def _check_resources(num_workers: int, use_gpu: bool) -> None:
    kind = "GPU" if use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < num_workers:
        raise UserError(
            f"cluster.num_workers={num_workers} needs {num_workers} {kind}s (one per worker); "
            f"the Ray cluster has {there}"
        )

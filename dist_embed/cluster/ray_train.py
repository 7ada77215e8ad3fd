"""Workers started and supervised by Ray Train, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from dist_embed.cluster.failure import RunFailed, failure_event, raise_failure
from dist_embed.config.errors import UserError
from dist_embed.observe.events import Event

POLL_SECONDS = 0.2


class _Mailbox:
    """Actor that carries events from workers to the launcher, wherever they run."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def launch_ray(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    num_workers: int,
    address: str | None,
    use_gpu: bool,
    timeout_seconds: float,
    max_failures: int,
    on_event: Callable[[Event], None],
    log_folder: str,
) -> Any:
    """Run ``target(*args, emit)`` in Ray Train workers; returns worker 0's result.

    Args:
        target: importable on every node.
        args: its arguments; plain values.
        num_workers: W.
        address: cluster to use; None: RAY_ADDRESS, and without that a Ray of our own.
        use_gpu: one GPU for each worker.
        timeout_seconds: bound of every exchange between workers.
        max_failures: times Ray starts the workers again after a failure.
        on_event: takes worker 0's events.
        log_folder: named in error messages.

    Raises:
        UserError: a worker raised one, or the cluster has too little for the workers.
        RunFailed: a worker failed or was lost.
    """
    with _connected(address, num_workers):
        _check_resources(num_workers, use_gpu)
        mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
        failures: list[Event] = []
        results: list[Any] = []

        def deliver(events: list[Event]) -> None:
            for event in events:
                if event["kind"] == "failure":
                    failures.append(event)
                elif event["kind"] == "result":
                    results.append(event["value"])
                else:
                    on_event(event)

        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"target": target, "args": args, "mailbox": mailbox},
            torch_config=TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=int(timeout_seconds)
            ),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(
                storage_path=tempfile.mkdtemp(prefix="dist_embed-ray-"),
                failure_config=FailureConfig(max_failures=max_failures),
            ),
        )
        outcome = _fit_in_thread(trainer, mailbox, deliver)
        deliver(ray.get(mailbox.take.remote()))
    if outcome is not None:
        if failures:
            raise_failure(failures, log_folder)
        raise RunFailed(f"{outcome}\n(worker logs: {log_folder})") from outcome
    return results[-1] if results else None


def _fit_in_thread(
    trainer: TorchTrainer, mailbox: Any, deliver: Callable[[list[Event]], None]
) -> Exception | None:
    """Run the trainer while events are delivered; returns what it raised."""
    outcome: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as exc:  # handed to the caller
            outcome.append(exc)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        deliver(ray.get(mailbox.take.remote()))
    return outcome[0] if outcome else None


def _ray_worker(loop_config: dict[str, Any]) -> None:
    mailbox = loop_config["mailbox"]
    rank = ray.train.get_context().get_world_rank()

    def emit(event: Event) -> None:
        mailbox.put.remote(event)

    try:
        value = loop_config["target"](*loop_config["args"], emit)
    except Exception as exc:
        ray.get(mailbox.put.remote(failure_event(rank, exc)))
        raise
    if rank == 0:
        ray.get(mailbox.put.remote({"kind": "result", "value": value}))


@contextmanager
def _connected(address: str | None, num_workers: int) -> Iterator[None]:
    """A connection to a cluster, or a local Ray for the length of the block."""
    where = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if where:
            ray.init(address=where, **quiet)
        else:
            # As many CPU slots as workers: more workers than cores is slow, not wrong.
            cores = max(os.cpu_count() or 1, num_workers)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, RayError, ValueError, RuntimeError) as exc:
        raise UserError(f"no Ray cluster answers at {where or 'this machine'}: {exc}") from exc
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_resources(num_workers: int, use_gpu: bool) -> None:
    kind = "GPU" if use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < num_workers:
        raise UserError(
            f"cluster.num_workers={num_workers} needs {num_workers} {kind}s (one per worker); "
            f"the Ray cluster has {there}"
        )

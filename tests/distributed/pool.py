"""Processes that stay between tests, so that a distributed test costs no start-up."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import queue
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dist_embed.parallel.group import Group
from dist_embed.parallel.rendezvous import gloo_listening, hosted_store
from tests.forks import forking

TIMEOUT_SECONDS = 90.0


class RemoteError(AssertionError):
    """A worker of the pool failed; the message holds its traceback."""


class WorkerPool:
    """Runs functions on any number of workers; processes are started when first needed.

    Args:
        device_type: of the workers. On ``cuda`` each has a GPU of its own, or all share the first.
    """

    def __init__(self, device_type: str = "cpu") -> None:
        self._device_type = device_type
        # Forked from a server that has imported everything: a start costs a fraction of a second.
        # CUDA cannot be used in a fork of a process that has touched it.
        cuda = device_type == "cuda"
        self._context: Any = multiprocessing.get_context("spawn") if cuda else forking()
        self._start()

    def _start(self) -> None:
        self._answers = self._context.Queue()
        self._orders: list[Any] = []
        self._processes: list[Any] = []

    def _grow(self, num_workers: int) -> None:
        while len(self._processes) < num_workers:
            orders = self._context.Queue()
            process = self._context.Process(
                target=_serve, args=(self._device_type, orders, self._answers), daemon=True
            )
            process.start()
            self._orders.append(orders)
            self._processes.append(process)

    def run(
        self, num_workers: int, function: Callable[..., Any], *args: Any, backend: str = "gloo"
    ) -> list[Any]:
        """``function(group, *args)`` on every worker; the results in the order of ranks.

        ``backend``: by which they exchange.

        Raises:
            RemoteError: a worker raised; all tracebacks are in the message.
        """
        self._grow(num_workers)
        store = hosted_store()
        for rank in range(num_workers):
            order = (function, args, rank, num_workers, store.port, backend)
            self._orders[rank].put(_packed(order))
        results: dict[int, Any] = {}
        failures: list[str] = []
        for _ in range(num_workers):
            rank, value, trace = self._answer(num_workers, failures)
            if trace:
                failures.append(f"worker {rank}:\n{trace}")
            results[rank] = value
        if failures:
            raise RemoteError("\n".join(failures))
        return [results[rank] for rank in range(num_workers)]

    def _answer(self, num_workers: int, failures: list[str]) -> Any:
        until = time.monotonic() + TIMEOUT_SECONDS
        while True:
            try:
                return pickle.loads(self._answers.get(timeout=1.0))
            except queue.Empty:
                codes = [process.exitcode for process in self._processes[:num_workers]]
                if codes == [None] * num_workers and time.monotonic() < until:
                    continue
            self.close()
            raise RemoteError(
                f"no answer within {TIMEOUT_SECONDS} s, or a worker ended (exit codes {codes}): "
                f"{failures}"
            )

    def close(self) -> None:
        """End the processes; others are started when needed."""
        for process in self._processes:
            process.kill()
            process.join()
        self._start()


def _serve(device_type: str, orders: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    while True:
        function, args, rank, num_workers, port, backend = pickle.loads(orders.get())
        value, trace = None, ""
        try:
            device, num_local_workers = _place(device_type, rank, num_workers)
            store = TCPStore("127.0.0.1", port, is_master=False)
            with gloo_listening(alone=True):  # on this machine
                dist.init_process_group(
                    backend, store=store, rank=rank, world_size=num_workers,
                    timeout=timedelta(seconds=30),
                )  # fmt: skip
            pg = dist.group.WORLD
            assert pg is not None
            group = Group(rank, num_workers, num_local_workers, device, pg)
            value = function(group, *args)
        except BaseException:
            trace = traceback.format_exc()
        finally:
            torch.set_grad_enabled(True)
            if dist.is_initialized():
                dist.destroy_process_group()
        answers.put(_answer_of(rank, value, trace))


def _answer_of(rank: int, value: Any, trace: str) -> bytes:
    try:
        return _packed((rank, value, trace))
    except Exception:
        return _packed((rank, None, f"{trace}{traceback.format_exc()}"))


class _Pickler(pickle.Pickler):
    """Tensors as arrays. One by one torch takes 50 times as long, and `multiprocessing`, with a
    file and a connection for each, no less: tests ask for hundreds from each worker. Two views of
    one memory come back apart, as by torch's own pickling.
    """

    def reducer_override(self, obj: Any) -> Any:
        is_plain = type(obj) is torch.Tensor and obj.device.type == "cpu" and not obj.requires_grad
        if is_plain and obj.dtype in _AS_ARRAYS:
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


_AS_ARRAYS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def _packed(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _place(device_type: str, rank: int, num_workers: int) -> tuple[torch.device, int]:
    """A worker's device, and how many workers are said to be on its machine.

    TorchRec places a machine's workers on GPUs of their own, and NCCL refuses two on one. So those
    that share a GPU are each said to be alone on a machine; NCCL then sends all through sockets.
    """
    if device_type == "cpu":
        return torch.device("cpu"), num_workers
    shared = torch.cuda.device_count() < num_workers
    if shared:
        os.environ.update(NCCL_HOSTID=f"worker-{rank}", NCCL_NET="Socket")
    device = torch.device("cuda", 0 if shared else rank)
    torch.cuda.set_device(device)
    return device, 1 if shared else num_workers

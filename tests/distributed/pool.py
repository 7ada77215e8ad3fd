"""Processes that stay between tests, so that a distributed test costs no start-up."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_embed.parallel.group import Group
from tests.forks import forking

TIMEOUT_SECONDS = 90.0


class RemoteError(AssertionError):
    """A worker of the pool failed; the message holds its traceback."""


class WorkerPool:
    """Runs functions on any number of gloo workers; processes are started when first needed."""

    def __init__(self) -> None:
        # Forked from a server that has imported everything: a start costs a fraction of a second.
        self._context = forking()
        self._start()

    def _start(self) -> None:
        self._answers = self._context.Queue()
        self._orders: list[Any] = []
        self._processes: list[Any] = []

    def _grow(self, num_workers: int) -> None:
        while len(self._processes) < num_workers:
            orders = self._context.Queue()
            process = self._context.Process(
                target=_serve, args=(orders, self._answers), daemon=True
            )
            process.start()
            self._orders.append(orders)
            self._processes.append(process)

    def run(self, num_workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(group, *args)`` on every worker; the results in the order of ranks.

        Raises:
            RemoteError: a worker raised; all tracebacks are in the message.
        """
        self._grow(num_workers)
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(num_workers):
            self._orders[rank].put((function, args, rank, num_workers, store.port))
        results: dict[int, Any] = {}
        failures: list[str] = []
        for _ in range(num_workers):
            try:
                rank, value, trace = self._answers.get(timeout=TIMEOUT_SECONDS)
            except queue.Empty:
                self.close()
                self._start()
                raise RemoteError(f"no answer within {TIMEOUT_SECONDS} s: {failures}") from None
            if trace:
                failures.append(f"worker {rank}:\n{trace}")
            results[rank] = value
        if failures:
            raise RemoteError("\n".join(failures))
        return [results[rank] for rank in range(num_workers)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(orders: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    while True:
        function, args, rank, num_workers, port = orders.get()
        value, trace = None, ""
        try:
            store = dist.TCPStore("127.0.0.1", port, is_master=False)
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=num_workers,
                timeout=timedelta(seconds=30),
            )  # fmt: skip
            pg = dist.group.WORLD
            assert pg is not None
            group = Group(rank, num_workers, num_workers, torch.device("cpu"), pg)
            value = function(group, *args)
        except BaseException:
            trace = traceback.format_exc()
        finally:
            torch.set_grad_enabled(True)
            if dist.is_initialized():
                dist.destroy_process_group()
        answers.put((rank, value, trace))

"""This worker's place among its peers, and joining and leaving the process group."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from dist_embed.arguments import one_of, real_number
from dist_embed.errors import UserError
from dist_embed.parallel.device import resolve_device
from dist_embed.parallel.rendezvous import gloo_listening
from dist_embed.parallel.settings import DeviceChoice


@dataclass(frozen=True)
class Group:
    """One worker (``rank``) of ``num_workers`` that train together, and its device."""

    rank: int
    num_workers: int
    num_local_workers: int
    device: torch.device
    process_group: dist.ProcessGroup
    _left: threading.Event = field(
        default_factory=threading.Event, init=False, repr=False, compare=False
    )

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, which writes what is written once."""
        return self.rank == 0

    def require_joined(self) -> None:
        """Raise UserError once the block that has joined the group has ended. Not collective."""
        if self._left.is_set():
            raise UserError(
                "the block `with joined_group()` of these workers has ended; tables, softmaxes and "
                "checkpoints of its group are used inside it"
            )


LONGEST_TIMEOUT_SECONDS = 365 * 86_400.0  # a timedelta, and torch's milliseconds, have an end
_last_joined: list[dist.ProcessGroup] = []  # kept beyond `joined_group`; see its end


@contextmanager
def joined_group(
    device_type: DeviceChoice = "auto", timeout_seconds: float = 600.0
) -> Iterator[Group]:
    """Join the process group of this run for the length of a ``with`` block.

    A launcher that has already initialised ``torch.distributed`` (Ray Train) keeps ownership of
    the group. Otherwise the environment of ``torchrun`` (RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR, MASTER_PORT) is read and the group is destroyed at the end of the block. A process
    that no launcher has told its place is the only worker. gloo listens where the peers are
    (`gloo_listening`).

    Raises UserError for CUDA on a machine without, or an argument that cannot be.
    ``timeout_seconds``, at most a year, bounds every collective; gloo's first connections, as
    workers join, five times as much (torch 2.13, gloo's pair.h: waitUntil). Collective.
    """
    told = dist.is_initialized() or bool({"RANK", "WORLD_SIZE"} & os.environ.keys())
    with (
        gloo_listening(alone=not told),
        _joined(device_type, timeout_seconds, alone=not told) as group,
    ):
        yield group


@contextmanager
def lone_group(
    device_type: DeviceChoice = "auto", timeout_seconds: float = 600.0
) -> Iterator[Group]:
    """This process as the only worker of a group, on the first device of its type, whatever place
    the environment gives it. Raises UserError for CUDA on a machine without.
    """
    with gloo_listening(alone=True), _joined(device_type, timeout_seconds, alone=True) as group:
        yield group


@contextmanager
def _joined(device_type: DeviceChoice, timeout_seconds: float, *, alone: bool) -> Iterator[Group]:
    one_of("device_type", device_type, get_args(DeviceChoice))
    timeout_seconds = real_number(
        "timeout_seconds", timeout_seconds, positive=True, most=LONGEST_TIMEOUT_SECONDS
    )
    local_rank = 0 if alone else int(os.environ.get("LOCAL_RANK", "0"))
    device_type = resolve_device(device_type, name="device_type")
    if device_type == "cuda":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    owned = alone or not dist.is_initialized()
    if owned:
        timeout = timedelta(seconds=max(0.001, timeout_seconds))
        place: dict[str, Any] = {}
        if alone:
            place = {"store": HashStore(), "rank": 0, "world_size": 1}
        elif (restart := os.environ.get("TORCHELASTIC_RESTART_COUNT")) and _is_one_node():
            # What workers before a restart have left in torchrun's store, as their addresses, is
            # still there (torch 2.13, rendezvous.py:_create_c10d_store takes it for a new one). On
            # several nodes each torchrun counts by itself.
            store, rank, num_workers = next(rendezvous("env://", timeout=timeout))
            store = PrefixStore(f"restart-{restart}", store)
            place = {"store": store, "rank": rank, "world_size": num_workers}
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo", timeout=timeout, **place
        )
    pg = dist.group.WORLD
    assert pg is not None
    num_workers = dist.get_world_size()
    local = num_workers if alone else int(os.environ.get("LOCAL_WORLD_SIZE", num_workers))
    group = Group(
        rank=dist.get_rank(),
        num_workers=num_workers,
        num_local_workers=local,
        device=device,
        process_group=pg,
    )
    ended_well = False
    try:
        yield group
        # A DistributedDataParallel may outlive this block. If it held the last reference, it would
        # wait for gloo's threads while it holds the interpreter's lock, which they may need to let
        # go of their last tensors: a deadlock (pytorch/pytorch, issue 56297). After a failure
        # peers are to notice that this worker's connections close.
        _last_joined[:] = [pg]
        ended_well = True
    finally:
        group._left.set()
        if owned:
            _end_group(device, by_an_error=not ended_well)


def _is_one_node() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")


def _end_group(device: torch.device, *, by_an_error: bool) -> None:
    if by_an_error and device.type == "cuda":
        # NCCL's usual end waits for exchanges that peers take part in no more, until their limit,
        # and the error would be told only then (torch 2.13, ProcessGroupNCCL.cpp: shutdown). torch
        # has no public call that ends all groups so. That error counts, not one of this end.
        with suppress(RuntimeError):
            dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()

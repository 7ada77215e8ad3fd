"""Room for workers on a Ray cluster: waiting for it, and seeing it come and go.

Room is asked for by placement groups, for which Ray, and an autoscaler, make all of it or none. Why
not by Ray Train's own elastic workers: docs/decisions/0048-workers-that-come-and-go.md.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private import state
from ray.util import placement_group, remove_placement_group
from ray.util.client import ray as client

from dist_embed.cluster.ray_node import NodeLost
from dist_embed.errors import RunFailed, UserError
from dist_embed.parallel.settings import DeviceChoice

POLL_SECONDS = 1.0
SILENT_SECONDS = 5.0  # of waiting before a word is said
FIT_SECONDS = 10.0  # that Ray may take to find the room that was counted
ANSWER_SECONDS = 2.0
SETTLE_SECONDS = 60.0
# A label of nodes (Ray 2.60, ray._raylet.RAY_NODE_GROUP_KEY): RAY_NODE_TYPE_NAME of `ray start`.
# KubeRay sets that in each pod (1.7.0, ray-operator/controllers/ray/common/pod.go), and so does
# `ray up` (2.60, autoscaler/_private/commands.py).
NODE_GROUP = "ray.io/node-group"
GROW_SECONDS = 30.0  # nodes seldom come alone: the others get so long


def takes_gpus(device: DeviceChoice, say: Callable[[str], None]) -> bool:
    """Whether workers on ``device`` take GPUs; ``auto``: where the cluster has any, whoever uses
    them at the moment. ``say`` is told where it has none, but may get some.
    """
    if device != "auto":
        return device == "cuda"
    has_some = bool(ray.cluster_resources().get("GPU", 0) >= 1)
    if not has_some and _may_get_nodes():
        say(
            "no node of the Ray cluster has a GPU now: workers train on CPUs; cluster.device=cuda "
            "waits for GPUs"
        )
    return has_some


class Room:
    """Slots for ``min_workers`` to ``max_workers`` workers, each one of ``kind``, CPU or GPU."""

    def __init__(
        self,
        kind: str,
        min_workers: int,
        max_workers: int,
        *,
        timeout_seconds: float,
        replace_seconds: float,
    ) -> None:
        self._kind = kind
        self._min, self.max_workers = min_workers, max_workers
        self._timeout, self._replace = timeout_seconds, replace_seconds

    def check(self) -> None:
        """Raises UserError where the cluster has too little, whoever uses it at the moment, and
        nothing is known that would give it more.
        """
        there = int(ray.cluster_resources().get(self._kind, 0))
        if there < self._min and not _may_get_nodes():
            instead = "; cluster.device=cpu trains on CPUs" if self._kind == "GPU" else ""
            raise UserError(
                f"cluster.num_workers={self._min} needs {self._min} {self._kind}s (one per "
                f"worker); the Ray cluster has {there}{instead}"
            )

    def leaving(self) -> set[str]:
        """Nodes that are about to be taken away; through Ray's client (ray://) one cannot see."""
        if client.is_connected():
            return set()
        return set(state.state.get_draining_nodes())

    def free(self) -> int:
        """Slots that nobody uses, on nodes that stay."""
        if client.is_connected():
            return int(ray.available_resources().get(self._kind, 0))
        leaving = self.leaving()
        nodes = state.available_resources_per_node().items()
        return sum(int(has.get(self._kind, 0)) for node, has in nodes if node not in leaving)

    def settle(self, nodes: set[str], check: Callable[[], None]) -> None:
        """Wait until Ray knows which of ``nodes`` are gone, where workers were lost: it takes it
        some seconds, and until then it would give room there.

        ``check`` is called meanwhile, and may raise.
        """
        until = time.monotonic() + SETTLE_SECONDS
        while not client.is_connected() and time.monotonic() < until:
            there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in nodes]
            if all(map(_answers, there)):
                return
            check()
            time.sleep(POLL_SECONDS)

    def wait(
        self, wanted: int, say: Callable[[str], None], check: Callable[[], None], *, again: bool
    ) -> int:
        """Wait until there is room; returns for how many workers.

        Args:
            wanted: at best; fewer, from ``min_workers`` on, where that takes ``replace_seconds``.
            say: takes a line for the user.
            check: is called while it waits, and may raise.
            again: whether workers were lost, who may be replaced; else fewer are taken at once.

        Raises RunFailed after ``timeout_seconds``.
        """
        began = time.monotonic()
        asked, told = self.ask(wanted), False
        try:
            while not asked.wait(POLL_SECONDS):
                check()
                waited, free = time.monotonic() - began, self.free()
                if free >= self._min and (waited >= self._replace or not again):
                    remove_placement_group(asked)
                    fewer = min(wanted, free)
                    asked = self.ask(fewer)
                    if asked.wait(FIT_SECONDS):
                        return fewer
                    remove_placement_group(asked)
                    asked = self.ask(wanted)
                if waited >= self._timeout:
                    raise RunFailed(
                        f"there was no room for {self._min} workers within {self._timeout:.0f} s "
                        f"(cluster.timeout_seconds): {free} of {self._min} {self._kind} slots"
                    )
                if waited >= SILENT_SECONDS and not told:
                    told = True
                    say(self._waiting(wanted, free))
            return wanted
        except NodeLost:
            asked = None  # Ray would end this process before anything is told
            raise
        finally:
            if asked is not None:
                remove_placement_group(asked)

    def _waiting(self, wanted: int, free: int) -> str:
        fewer = ""
        if self._min < wanted:
            fewer = f"; after {self._replace:.0f} s it goes on with {self._min} or more"
        return (
            f"waits for room: has {free} of {wanted} {self._kind} slots, up to "
            f"{self._timeout:.0f} s{fewer}"
        )

    def ask(self, workers: int) -> Any:
        """Slots for so many workers, all or none, once it is created."""
        return placement_group([{self._kind: 1}] * workers)


def _may_get_nodes() -> bool:
    """Whether nodes are started by what may start others, and names each one's group."""
    return any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"])


def _answers(node: dict[str, Any]) -> bool:
    """Whether what Ray runs on a node does."""
    place = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(place, timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class Growth:
    """Room for more workers than ``now`` run, while a ``with`` block lasts.

    One slot more is asked for, and held: so an autoscaler hears of it.
    """

    def __init__(self, room: Room, now: int) -> None:
        self._room = room
        self.now = now
        self._asked: Any = None
        self._since: float | None = None

    def __enter__(self) -> Growth:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._asked is not None and kind is not NodeLost:  # of whom nothing more may be asked
            remove_placement_group(self._asked)

    def possible(self) -> int:
        """For how many there is room. To be called once all run: it takes what is free."""
        if self.now == self._room.max_workers:
            return self.now
        if self._asked is None:
            self._asked = self._room.ask(1)
        if self._since is None:
            if self._asked.wait(0.01):
                self._since = time.monotonic()
            return self.now
        if time.monotonic() - self._since < GROW_SECONDS:
            return self.now
        if not self._asked.wait(POLL_SECONDS):  # the node with it has gone since
            self._since = None
            return self.now
        return min(self._room.max_workers, self.now + 1 + self._room.free())

"""Room for workers on a Ray cluster: waiting for it, and seeing it come and go.

Room is asked for by placement groups, for which Ray, and an autoscaler, make all of it or none. Why
not by Ray Train's own elastic workers: docs/decisions/0048-workers-that-come-and-go.md.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal

import ray
from ray._private import state
from ray.exceptions import RayError
from ray.util import placement_group, placement_group_table, remove_placement_group

from dist_embed.cluster.ray_aside import POLL_SECONDS, Rest
from dist_embed.cluster.ray_controller import nodes_of_slots
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.errors import RunFailed, UserError
from dist_embed.parallel.settings import DeviceChoice

WORD_SECONDS = 5.0  # of waiting before a word is said
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


def kind_of_slots(
    min_workers: int, device: DeviceChoice, say: Callable[[str], None]
) -> Literal["GPU", "CPU"]:
    """What a worker on ``device`` takes one of; see `takes_gpus`.

    Raises UserError where the cluster has fewer than ``min_workers``, whoever uses it at the
    moment, and nothing is known that would give it more.
    """
    kind: Literal["GPU", "CPU"] = "GPU" if takes_gpus(device, say) else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < min_workers and not _may_get_nodes():
        instead = "; cluster.device=cpu trains on CPUs" if kind == "GPU" else ""
        raise UserError(
            f"cluster.num_workers={min_workers} needs {min_workers} {kind}s (one per "
            f"worker); the Ray cluster has {there}{instead}"
        )
    return kind


class Room:
    """Slots for ``min_workers`` to ``max_workers`` workers.

    All that it does asks Ray: for `Aside`, whose ``rest`` is handed to what takes long.

    Attributes:
        kind: of the slots, CPU or GPU, once it is chosen.
    """

    kind: Literal["GPU", "CPU"]

    def __init__(
        self,
        min_workers: int,
        max_workers: int,
        *,
        timeout_seconds: float,
        replace_seconds: float,
    ) -> None:
        self._min, self.max_workers = min_workers, max_workers
        self.timeout_seconds, self._replace = timeout_seconds, replace_seconds

    def choose(self, device: DeviceChoice, say: Callable[[str], None]) -> None:
        """Choose the kind of slot, see `kind_of_slots`."""
        self.kind = kind_of_slots(self._min, device, say)

    def leaving(self) -> set[str]:
        """Nodes that are about to be taken away."""
        return set(state.state.get_draining_nodes())

    def free(self) -> int:
        """Slots that nobody uses, on nodes that stay."""
        leaving = self.leaving()
        nodes = state.available_resources_per_node().items()
        return sum(int(has.get(self.kind, 0)) for node, has in nodes if node not in leaving)

    def settle(self, nodes: set[str], rest: Rest) -> None:
        """Wait until Ray knows which of ``nodes`` are gone, where workers were lost: it takes it
        some seconds, and until then it would give room there.
        """
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until:
            there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in nodes]
            if _all_answer(there):
                return
            rest(POLL_SECONDS)

    def wait(self, wanted: int, say: Callable[[str], None], rest: Rest, *, again: bool) -> int:
        """Wait until there is room; returns for how many workers.

        Args:
            wanted: at best; fewer, from ``min_workers`` on, where that takes ``replace_seconds``.
            say: takes a line for the user.
            rest: see `Aside`.
            again: whether workers were lost, who may be replaced; else fewer are taken at once.

        Raises RunFailed after ``timeout_seconds``.
        """
        began, free, told = time.monotonic(), 0, False
        asked, size = None, wanted
        try:
            while True:
                waited = time.monotonic() - began
                try:
                    if asked is None:
                        asked, size = self.ask(wanted), wanted
                    if asked.wait(POLL_SECONDS):
                        return size
                    free = self.free()
                    if free >= self._min and (waited >= self._replace or not again):
                        remove_placement_group(asked)
                        asked, size = None, min(wanted, free)
                        asked = self.ask(size)
                        if asked.wait(FIT_SECONDS):
                            return size
                        remove_placement_group(asked)
                        asked = None
                except RayError:  # a head that starts again may answer next time
                    rest(POLL_SECONDS)
                rest(0.0)
                if waited >= self.timeout_seconds:
                    raise RunFailed(self._no_room(free))
                if waited >= WORD_SECONDS and not told:
                    told = True
                    say(self._waiting(wanted, free))
        except NodeLost:
            asked = None  # Ray would end this process before anything is told
            raise
        finally:
            if asked is not None:
                remove_placement_group(asked)

    def _no_room(self, free: int) -> str:
        apart = ", which others took, or which did not fit" if free >= self._min else ""
        return (
            f"there was no room for {self._min} workers within {self.timeout_seconds:.0f} s "
            f"(cluster.timeout_seconds): {free} of {self._min} {self.kind} slots{apart}"
        )

    def _waiting(self, wanted: int, free: int) -> str:
        fewer = ""
        if self._min < wanted:
            fewer = f"; after {self._replace:.0f} s it goes on with {self._min} or more"
        return (
            f"waits for room: has {free} of {wanted} {self.kind} slots, up to "
            f"{self.timeout_seconds:.0f} s{fewer}"
        )

    def ask(self, workers: int) -> Any:
        """Slots for so many workers, all or none, once it is created."""
        return placement_group([{self.kind: 1}] * workers)


def _may_get_nodes() -> bool:
    """Whether nodes are started by what may start others, and names each one's group."""
    return any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"])


def _all_answer(nodes: list[dict[str, Any]]) -> bool:
    """Whether what Ray runs on nodes does; all are asked at once."""
    with ThreadPoolExecutor(max(1, len(nodes))) as threads:
        return all(threads.map(_answers, nodes))


def _answers(node: dict[str, Any]) -> bool:
    place = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(place, timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class Growth:
    """Room for more workers than ``now`` run, while a ``with`` block lasts.

    It is asked for slot by slot, up to ``max_workers``, and what comes is held: so an autoscaler
    hears of all at once, and starts as many nodes as it may.
    """

    def __init__(self, room: Room, now: int) -> None:
        self._room = room
        self._now = now
        self._asked: list[Any] = []
        self._come = 0
        self._since = 0.0

    def __enter__(self) -> Growth:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not NodeLost:  # of whom nothing more may be asked
            for one in self._asked:
                remove_placement_group(one)

    def possible(self, leaving: set[str]) -> int:
        """For how many there is room on other nodes than those ``leaving``, once all have come, or
        no other for `GROW_SECONDS`. To be called once all run: it takes what is free.
        """
        most = self._room.max_workers
        if not self._asked:
            self._asked = [self._room.ask(1) for _ in range(self._now, most)]
        come = self._count(leaving)
        if come != self._come:
            self._come, self._since = come, time.monotonic()
        may_come = self._now + come < most and time.monotonic() - self._since < GROW_SECONDS
        return self._now if may_come else self._now + come

    def _count(self, leaving: set[str]) -> int:
        """Those of the slots that are there."""
        if not self._asked:
            return 0
        told = placement_group_table()
        found = [told.get(one.id.hex(), {}) for one in self._asked]
        return sum(
            one.get("state") == "CREATED" and leaving.isdisjoint(one["bundles_to_node_id"].values())
            for one in found
        )


class Outlook:
    """What Ray says, while workers run, of nodes and of room for more of them.

    Attributes:
        leaving: nodes that are about to be taken away.
        announced: those that ever were, gone since or not.
        held: nodes of these workers' slots, looked up where a node is leaving that workers may not
            have begun on yet.
        possible: for how many workers there is room.
        all_run: to be set once all ``now`` do: until then they need what is free.
    """

    def __init__(self, room: Room, now: int) -> None:
        self._room = room
        self.now = now
        self.leaving: set[str] = set()
        self.announced: set[str] = set()
        self.held: set[str] = set()
        self.possible = now
        self.all_run = threading.Event()

    def watch(self, rest: Rest) -> None:
        """Keep it up to date. For `Aside`."""
        with Growth(self._room, self.now) as growth:
            while True:
                with suppress(RayError):  # a head that starts again may answer next time
                    self.leaving = self._room.leaving()
                    self.announced |= self.leaving
                    if self.leaving and not self.all_run.is_set():
                        self.held |= nodes_of_slots()
                    if self.all_run.is_set():
                        self.possible = growth.possible(self.leaving)
                rest(POLL_SECONDS)

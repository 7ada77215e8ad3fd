"""Waiting for room on a Ray cluster, which a stand-in is, as is the clock."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray import _raylet

from dist_embed.cluster import ray_room
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.cluster.ray_room import (
    GROW_SECONDS,
    SETTLE_SECONDS,
    SILENT_SECONDS,
    Growth,
    Room,
    takes_gpus,
)
from dist_embed.errors import RunFailed, UserError
from dist_embed.parallel.settings import DeviceChoice


class Cluster:
    """Nodes with free slots, which change as time passes.

    Attributes:
        free: by node.
        leaving: nodes that Ray gives no room on.
        course: what happens, by the second.
        others: whether somebody else takes a slot as soon as it was counted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **free: float) -> None:
        self.now = 1000.0
        self.free = free
        self.leaving: dict[str, int] = {}
        self.course: dict[int, Callable[[], None]] = {}
        self.held: list[Request] = []
        self.said: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.pass_time)
        monkeypatch.setattr(ray_room, "placement_group", lambda slots: Request(self, slots))
        monkeypatch.setattr(ray_room, "remove_placement_group", lambda one: self.held.remove(one))
        state = ray_room.state
        monkeypatch.setattr(
            state, "available_resources_per_node",
            lambda: {node: {"CPU": slots, "memory": 9.0} for node, slots in self.free.items()},
        )  # fmt: skip
        monkeypatch.setattr(state.state, "get_draining_nodes", lambda: self.leaving)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.course if self.now - 1000.0 >= at]:
            self.course.pop(at)()

    def wait(self, wanted: int, *, again: bool = True, **how: float) -> int:
        room = Room("CPU", 2, 8, **({"timeout_seconds": 600.0, "replace_seconds": 60.0} | how))
        return room.wait(wanted, self.said.append, lambda: None, again=again)


class Request:
    """A placement group."""

    def __init__(self, cluster: Cluster, slots: list[dict[str, int]]) -> None:
        assert slots == [{"CPU": 1}] * len(slots)
        self._cluster, self._slots = cluster, len(slots)
        cluster.held.append(self)

    def wait(self, seconds: float) -> bool:
        cluster = self._cluster
        there = sum(int(n) for node, n in cluster.free.items() if node not in cluster.leaving)
        if there < self._slots:
            cluster.pass_time(seconds)
        return there >= self._slots


def test_workers_start_at_once_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=4.0, b=4.0)
    assert cluster.wait(8) == 8
    assert (cluster.now, cluster.said, cluster.held) == (1000.0, [], [])


def test_at_the_start_fewer_begin_and_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=1.5, b=2.0)
    assert cluster.wait(8, again=False) == 3
    assert cluster.now < 1000.0 + SILENT_SECONDS
    assert (cluster.said, cluster.held) == ([], [])


def test_lost_workers_are_waited_for_before_fewer_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=3.0)
    assert cluster.wait(4) == 3
    assert cluster.now == pytest.approx(1060.0, abs=2)
    assert cluster.said == [
        "waits for room: has 3 of 4 CPU slots, up to 600 s; after 60 s it goes on with 2 or more"
    ]
    assert cluster.held == []


@pytest.mark.parametrize("after", [10, 90])
def test_a_node_that_is_replaced_is_waited_for(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Longer than the minute that Ray Train would wait."""
    cluster = Cluster(monkeypatch, a=1.0)
    cluster.course[after] = lambda: cluster.free.update(b=1.0)
    assert cluster.wait(2) == 2
    assert cluster.now == pytest.approx(1000.0 + after, abs=2)
    assert cluster.said == ["waits for room: has 1 of 2 CPU slots, up to 600 s"]


def test_the_wait_for_room_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=1.0, gone=3.0)
    cluster.leaving["gone"] = 0  # there, but not for long
    with pytest.raises(RunFailed) as caught:
        cluster.wait(4, timeout_seconds=150.0)
    assert str(caught.value) == (
        "there was no room for 2 workers within 150 s (cluster.timeout_seconds): 1 of 2 CPU slots"
    )
    assert cluster.now == pytest.approx(1150.0, abs=2)
    assert cluster.held == []


def test_a_request_to_stop_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=1.0)

    def stop() -> None:
        raise KeyError("stop")

    room = Room("CPU", 2, 2, timeout_seconds=600.0, replace_seconds=60.0)
    with pytest.raises(KeyError):
        room.wait(2, cluster.said.append, stop, again=True)
    assert cluster.held == []


def test_of_a_node_that_is_lost_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process before anything is told, or never answer."""
    cluster = Cluster(monkeypatch, a=1.0)
    removed: list[Request] = []
    monkeypatch.setattr(ray_room, "remove_placement_group", removed.append)

    def check() -> None:
        if cluster.now > 1005.0:
            raise NodeLost

    room = Room("CPU", 2, 2, timeout_seconds=600.0, replace_seconds=60.0)
    with pytest.raises(NodeLost):
        room.wait(2, cluster.said.append, check, again=True)
    growing = Room("CPU", 1, 2, timeout_seconds=600.0, replace_seconds=60.0)

    def grow() -> None:
        with Growth(growing, 1) as growth:
            growth.possible()
            check()

    with pytest.raises(NodeLost):
        grow()
    assert len(cluster.held) == 2
    assert removed == []


def test_room_on_a_node_that_has_gone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, b=1.0)
    with Growth(Room("CPU", 2, 8, timeout_seconds=600.0, replace_seconds=60.0), 3) as growth:
        growth.possible()
        del cluster.free["b"]
        cluster.now += GROW_SECONDS + 1
        assert growth.possible() == 3
        cluster.free["c"] = 1.0
        assert growth.possible() == 3  # others may come with it
        cluster.free["c"] = 2.0
        cluster.now += GROW_SECONDS + 1
        assert growth.possible() == 6


def test_more_workers_wait_for_nodes_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    room = Room("CPU", 2, 8, timeout_seconds=600.0, replace_seconds=60.0)
    with Growth(room, 3) as growth:
        assert growth.possible() == 3
        cluster.free["b"] = 1.0
        assert growth.possible() == 3
        cluster.free.update(b=0.0, c=2.0)  # b's is held
        cluster.now += GROW_SECONDS - 1
        assert growth.possible() == 3
        cluster.now += 2
        assert growth.possible() == 6
        cluster.free["c"] = 20.0
        assert growth.possible() == 8
        assert len(cluster.held) == 1
    assert cluster.held == []
    with Growth(room, 8) as growth:
        assert growth.possible() == 8
        assert cluster.held == []


def test_through_rays_client_less_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=9.0)
    monkeypatch.setattr(ray_room.client, "is_connected", lambda: True)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    cluster.leaving["a"] = 0
    room = Room("CPU", 2, 8, timeout_seconds=600.0, replace_seconds=60.0)
    assert (room.free(), room.leaving()) == (3, set())
    room.settle({"a"}, lambda: None)
    assert cluster.now == 1000.0


def test_a_cluster_with_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, Any]] = [{"Alive": True, "Labels": {}}]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 9.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    how = {"timeout_seconds": 1.0, "replace_seconds": 1.0}
    Room("CPU", 9, 99, **how).check()
    with pytest.raises(UserError, match=r"num_workers=2 needs 2 GPUs .* the Ray cluster has 1"):
        Room("GPU", 2, 8, **how).check()
    with pytest.raises(UserError, match=r"needs 10 CPUs .* the Ray cluster has 9$"):
        Room("CPU", 10, 10, **how).check()
    managed = {_raylet.RAY_NODE_GROUP_KEY: "workers"}
    nodes.append({"Alive": False, "Labels": managed})
    with pytest.raises(UserError):
        Room("CPU", 10, 10, **how).check()
    nodes.append({"Alive": True, "Labels": managed})
    Room("CPU", 10, 10, **how).check()  # more may come: they are waited for


def test_workers_take_gpus_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    has, nodes, said = {"CPU": 9.0, "GPU": 1.0}, [{"Alive": True, "Labels": {}}], []
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    devices: list[DeviceChoice] = ["cpu", "cuda", "auto"]
    assert [takes_gpus(device, said.append) for device in devices] == [False, True, True]
    del has["GPU"]
    assert [takes_gpus(device, said.append) for device in devices] == [False, True, False]
    assert said == []
    nodes[0]["Labels"] = {_raylet.RAY_NODE_GROUP_KEY: "head"}
    assert [takes_gpus(device, said.append) for device in devices] == [False, True, False]
    (line,) = said  # of `auto`
    assert "no node of the Ray cluster has a GPU now: workers train on CPUs" in line


def test_ray_gets_the_time_to_see_which_nodes_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it would give room on them (Ray 2.60: for some seconds)."""
    cluster = Cluster(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as lives, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        nodes = [
            {"NodeID": name, "Alive": True, "NodeManagerAddress": "127.0.0.1",
             "NodeManagerPort": place.getsockname()[1]}
            for name, place in {"a": lives, "b": dead, "other": dead}.items()
        ]  # fmt: skip
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        room = Room("CPU", 2, 2, timeout_seconds=600.0, replace_seconds=60.0)
        room.settle({"a"}, lambda: None)
        assert cluster.now == 1000.0
        cluster.course[7] = lambda: nodes[1].update(Alive=False)
        room.settle({"a", "b"}, lambda: None)
        assert cluster.now == pytest.approx(1007.0)
        room.settle({"other"}, lambda: None)  # it has a limit
        assert cluster.now == pytest.approx(1007.0 + SETTLE_SECONDS)

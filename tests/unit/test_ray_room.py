"""Waiting for room on a Ray cluster, which a stand-in is, as is the clock."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray import _raylet
from ray.exceptions import RpcError

from dist_embed.cluster import ray_room
from dist_embed.cluster.ray_aside import GivenUp
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.cluster.ray_room import (
    GROW_SECONDS,
    SETTLE_SECONDS,
    WORD_SECONDS,
    Growth,
    Outlook,
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
        monkeypatch.setattr(ray_room, "placement_group_table", self.table)
        monkeypatch.setattr(ray_room, "nodes_of_slots", lambda: {"a"})
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
        return room_for(2, 8, **how).wait(wanted, self.said.append, self.pass_time, again=again)

    def table(self) -> dict[str, dict[str, Any]]:
        """Of the requests for one slot, by their order; a slot that is given stays given."""
        free = dict(self.free)
        told = {}
        for one in self.held:
            if one.node is None:
                one.node = next((node for node, slots in free.items() if slots >= 1), None)
            if one.node is not None:
                free[one.node] = free.get(one.node, 0.0) - 1
            is_there = one.node in self.free
            told[one.id] = {
                "state": "CREATED" if is_there else "PENDING", "bundles_to_node_id": {0: one.node},
            }  # fmt: skip
        return told


def room_for(min_workers: int, max_workers: int, **how: float) -> Room:
    limits = {"timeout_seconds": 600.0, "replace_seconds": 60.0} | how
    room = Room(min_workers, max_workers, **limits)
    room.kind = "CPU"
    return room


class Id(str):
    def hex(self) -> str:
        return self


class Request:
    """A placement group."""

    def __init__(self, cluster: Cluster, slots: list[dict[str, int]]) -> None:
        assert slots == [{"CPU": 1}] * len(slots)
        self._cluster, self._slots = cluster, len(slots)
        self.node: str | None = None
        self.id = Id(f"{id(self):x}")
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
    assert cluster.now < 1000.0 + WORD_SECONDS
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


def test_slots_that_are_counted_and_not_had_are_told_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch, a=3.0)
    with pytest.raises(RunFailed, match=r": 3 of 2 CPU slots, which others took, or which did not"):
        cluster.wait(4, timeout_seconds=20.0)


def test_an_error_of_ray_s_head_ends_no_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts again answers later."""
    cluster = Cluster(monkeypatch, a=1.0)

    def broken() -> Any:
        raise RpcError("unavailable")

    monkeypatch.setattr(ray_room.state, "available_resources_per_node", broken)
    cluster.course[20] = lambda: cluster.free.update(b=1.0)
    assert cluster.wait(2) == 2
    del cluster.free["b"]
    with pytest.raises(RunFailed, match="there was no room"):
        cluster.wait(2, timeout_seconds=30.0)


def test_a_head_that_is_lost_between_two_questions_leaves_no_request_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was taken back is neither waited for nor taken back again, and what is asked for anew is
    what there is then.
    """
    cluster = Cluster(monkeypatch, a=3.0)
    asked: list[int] = []

    def ask(slots: list[dict[str, int]]) -> Request:
        asked.append(len(slots))
        if len(asked) in (1, 3, 5):
            raise RpcError("unavailable")
        return Request(cluster, slots)

    monkeypatch.setattr(ray_room, "placement_group", ask)
    wait = Request.wait

    def waited(request: Request, seconds: float) -> bool:
        assert request in cluster.held
        return wait(request, seconds)

    monkeypatch.setattr(Request, "wait", waited)
    assert cluster.wait(4, again=False) == 3
    assert asked == [4, 4, 3, 4, 3, 4, 3]
    assert cluster.held == []


def test_a_request_that_could_not_be_taken_back_is_no_room_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch, a=3.0)
    answers = iter([None, RpcError("unavailable"), None])

    def remove(request: Request) -> None:
        if answer := next(answers):
            raise answer
        cluster.held.remove(request)

    monkeypatch.setattr(ray_room, "remove_placement_group", remove)
    wait = Request.wait

    def waited(request: Request, seconds: float) -> bool:
        cluster.free["a"] = 3.0 - (seconds == ray_room.FIT_SECONDS)
        return wait(request, seconds)

    monkeypatch.setattr(Request, "wait", waited)
    assert cluster.wait(4, again=False) == 3
    assert cluster.held == []


def test_a_request_to_stop_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=1.0)

    def stop(seconds: float) -> None:
        raise KeyError("stop")

    room = room_for(2, 2)
    with pytest.raises(KeyError):
        room.wait(2, cluster.said.append, stop, again=True)
    assert cluster.held == []


def test_of_a_node_that_is_lost_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process before anything is told, or never answer."""
    cluster = Cluster(monkeypatch, a=1.0)
    removed: list[Request] = []
    monkeypatch.setattr(ray_room, "remove_placement_group", removed.append)

    def rest(seconds: float) -> None:
        cluster.pass_time(seconds)
        if cluster.now > 1005.0:
            raise NodeLost

    room = room_for(2, 2)
    with pytest.raises(NodeLost):
        room.wait(2, cluster.said.append, rest, again=True)
    outlook = Outlook(room_for(1, 2), 1)
    outlook.all_run.set()
    with pytest.raises(NodeLost):
        outlook.watch(rest)
    assert len(cluster.held) == 2
    assert removed == []


def test_more_workers_wait_for_nodes_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are asked for at once, so that an autoscaler hears of all."""
    cluster = Cluster(monkeypatch)
    room = room_for(2, 8)
    with Growth(room, 3) as growth:
        assert growth.possible(set()) == 3
        assert len(cluster.held) == 5
        cluster.free["b"] = 1.0
        assert growth.possible(set()) == 3
        cluster.now += GROW_SECONDS - 1
        cluster.free["c"] = 2.0
        assert growth.possible(set()) == 3  # others may come with it
        cluster.now += GROW_SECONDS - 1
        assert growth.possible(set()) == 3
        cluster.now += 2
        assert growth.possible(set()) == 6
        cluster.free["c"] = 20.0
        assert growth.possible(set()) == 8  # there are no others
    assert cluster.held == []
    with Growth(room, 8) as growth:
        assert growth.possible(set()) == 8
        assert cluster.held == []


def test_room_on_a_node_that_goes_or_has_gone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, b=1.0, c=1.0)
    with Growth(room_for(2, 8), 3) as growth:
        assert growth.possible(set()) == 3
        cluster.now += GROW_SECONDS + 1
        assert growth.possible(set()) == 5
        assert growth.possible({"b"}) == 3
        cluster.now += GROW_SECONDS + 1
        assert growth.possible({"b"}) == 4
        del cluster.free["c"]
        cluster.now += GROW_SECONDS + 1
        assert growth.possible({"b"}) == 3


def test_an_error_of_ray_s_head_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    cluster.leaving["x"] = 0
    outlook = Outlook(room_for(2, 8), 3)
    answers = iter([RpcError("unavailable"), cluster.leaving, GivenUp()])

    def leaving() -> dict[str, int]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray_room.state.state, "get_draining_nodes", leaving)
    with pytest.raises(GivenUp):
        outlook.watch(cluster.pass_time)
    assert outlook.leaving == {"x"}


def test_what_workers_need_is_not_taken_before_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, b=9.0)
    cluster.leaving["x"] = 0
    outlook = Outlook(room_for(2, 8), 3)
    cluster.course = {5: outlook.all_run.set}

    def rest(seconds: float) -> None:
        assert outlook.leaving == {"x"}
        assert (len(cluster.held), outlook.possible) == ((5, 8) if cluster.now >= 1005 else (0, 3))
        cluster.pass_time(seconds)
        if cluster.now > 1008:
            raise GivenUp

    with pytest.raises(GivenUp):
        outlook.watch(rest)
    assert cluster.held == []
    assert (outlook.announced, outlook.held) == ({"x"}, {"a"})


def test_a_cluster_with_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, Any]] = [{"Alive": True, "Labels": {}}]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 9.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    room_for(9, 99).choose("cpu", print)
    with pytest.raises(UserError, match=r"num_workers=2 needs 2 GPUs .* the Ray cluster has 1"):
        room_for(2, 8).choose("cuda", print)
    with pytest.raises(UserError, match=r"needs 10 CPUs .* the Ray cluster has 9$"):
        room_for(10, 10).choose("cpu", print)
    managed = {_raylet.RAY_NODE_GROUP_KEY: "workers"}
    nodes.append({"Alive": False, "Labels": managed})
    with pytest.raises(UserError):
        room_for(10, 10).choose("cpu", print)
    nodes.append({"Alive": True, "Labels": managed})
    room_for(10, 10).choose("cpu", print)  # more may come: they are waited for


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
        room = room_for(2, 2)
        room.settle({"a"}, cluster.pass_time)
        assert cluster.now == 1000.0
        cluster.course[7] = lambda: nodes[1].update(Alive=False)
        room.settle({"a", "b"}, cluster.pass_time)
        assert cluster.now == pytest.approx(1007.0)
        room.settle({"other"}, cluster.pass_time)  # it has a limit
        assert cluster.now == pytest.approx(1007.0 + SETTLE_SECONDS)


def test_nodes_that_say_nothing_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8)

    def connect(place: object, timeout: float) -> None:
        together.wait(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    nodes = [{"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port} for port in range(8)]
    assert not ray_room._all_answer(nodes)

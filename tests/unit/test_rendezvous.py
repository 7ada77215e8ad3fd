"""Where workers meet: on which addresses a store and gloo listen."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from dist_embed.parallel import rendezvous
from dist_embed.parallel.group import joined_group, lone_group
from dist_embed.parallel.rendezvous import gloo_listening, hosted_store, interface_of

IF_NAME = "GLOO_SOCKET_IFNAME"


@pytest.fixture(autouse=True)
def told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (IF_NAME, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def addresses() -> Callable[[], set[str]]:
    """The addresses on which this process listens and did not before the test."""

    def listening() -> set[Any]:
        found = psutil.Process().net_connections("inet")
        return {one.laddr for one in found if one.status == psutil.CONN_LISTEN}

    before = listening()
    return lambda: {address.ip for address in listening() - before}


def test_a_store_listens_on_one_address_until_it_is_gone(
    addresses: Callable[[], set[str]],
) -> None:
    store = hosted_store()
    assert addresses() == {"127.0.0.1"}
    dist.TCPStore("127.0.0.1", store.port, is_master=False).set("key", "value")
    assert store.get("key") == b"value"
    del store
    assert addresses() == set()


def test_another_address_of_this_machine_is_taken_and_none_of_another() -> None:
    store = hosted_store("127.0.0.2")
    assert dist.TCPStore("127.0.0.2", store.port, is_master=False)
    with pytest.raises(OSError, match="Cannot assign"):
        hosted_store("198.51.100.1")


@pytest.mark.parametrize("group", [joined_group, lone_group])
def test_one_worker_listens_on_loopback_and_leaves_the_environment(
    group: Any, addresses: Callable[[], set[str]]
) -> None:
    with group("cpu"):
        assert addresses() == {"127.0.0.1"}
        # Without it that would depend on the name of this machine.
        assert os.environ[IF_NAME] == "lo"
    assert IF_NAME not in os.environ


def test_interfaces_are_known_by_their_first_address() -> None:
    for name, known in psutil.net_if_addrs().items():
        first = next((one.address for one in known if one.family == socket.AF_INET), None)
        assert first is None or interface_of(first) == name
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.1") is None


@pytest.mark.parametrize(
    ("environment", "routes", "chosen"),
    [
        # One machine, whatever its name means.
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first"}, {}, "lo"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, {}, "lo"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, {}, "lo"),
        # Another machine is the first one: the interface by which it is reached.
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first"},
         {"first": "10.1.0.5", "outside": "10.0.0.5"}, "ib0"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "first"}, {"first": "10.1.0.5"}, "ib0"),
        # This is the first one, and its name is loopback to itself.
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first"},
         {"first": "127.0.0.1", "outside": "10.0.0.5"}, "eth0"),
        # No way out, and two interfaces: not to be told.
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "first"},
         {"first": "127.0.0.1"}, None),
        # Of an address that is no interface's first one likewise.
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "first"},
         {"first": "10.0.0.6"}, None),
        # Nobody has said how many workers there are.
        ({"MASTER_ADDR": "127.0.0.1"}, {}, None),
        # What the user says stands.
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", IF_NAME: "mine"}, {}, "mine"),
    ],
)  # fmt: skip
def test_gloo_listens_where_the_peers_are(
    environment: dict[str, str], routes: dict[str, str], chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    there = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"}
    monkeypatch.setattr(rendezvous, "_addresses", lambda: there)
    outside = routes.get("outside")
    monkeypatch.setattr(
        rendezvous, "_own_address", lambda host: routes.get(host, outside)
    )  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with gloo_listening(alone=False):
        assert os.environ.get(IF_NAME) == chosen
    assert os.environ.get(IF_NAME) == environment.get(IF_NAME)


def test_for_a_group_that_somebody_else_has_made_nothing_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with joined_group("cpu"):
            assert IF_NAME not in os.environ
    finally:
        dist.destroy_process_group()


def test_where_nothing_leads_outside_the_only_other_interface_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        rendezvous, "_addresses", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.5"}
    )  # fmt: skip
    monkeypatch.setattr(rendezvous, "_own_address", {"first": "127.0.0.1"}.get)
    assert rendezvous.interface_towards("first") == "eth0"

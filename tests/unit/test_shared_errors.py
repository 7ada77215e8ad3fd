"""An error's way to the peers, with a store and connections that stand in for a group's."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.parallel import errors
from dist_embed.parallel.errors import WorkerError, all_or_none, errors_shared
from dist_embed.parallel.group import Group


class Peers:
    """A group of two of which this process is one; ``course`` is what it did, in order.

    Attributes:
        hangs: whether the store's machine stands still.
        values: what is in the store.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, *, hangs: bool = False) -> None:
        self.course: list[str] = []
        self.hangs = hangs
        self.values: dict[str, Any] = {}
        self.released = threading.Event()
        self_: Any = self
        self.group = Group(rank, 2, 2, torch.device("cpu"), self_)
        monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: self)
        monkeypatch.setattr(errors, "CAUSE_WAIT_SECONDS", 0.2)

    def recv(self, *where: object) -> Any:
        self.course.append("break")
        raise RuntimeError("closed")

    def clone(self) -> Peers:
        self.course.append("clone")
        if self.hangs:
            self.released.wait(60)
            raise RuntimeError("gone")
        return self

    def check(self, keys: list[str]) -> bool:
        return keys[0] in self.values

    def wait(self, keys: list[str], limit: object) -> None:
        if not self.check(keys):
            raise RuntimeError("wait timeout")

    def get(self, key: str) -> bytes:
        return str(self.values[key]).encode()

    def add(self, key: str, number: int) -> int:
        self.values[key] = self.values.get(key, 0) + number
        return int(self.values[key])

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        if self.values.get(key, "") == expected:
            self.values[key] = value
        return str(self.values[key]).encode()


def test_a_store_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers(monkeypatch, 1, hangs=True)
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), errors_shared(peers.group):
        raise ZeroDivisionError
    assert 0.5 < time.monotonic() - started < 30
    assert peers.course == ["break", "clone"]  # peers are not to wait either
    peers.released.set()


def test_a_worker_leaves_its_error_for_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers(monkeypatch, 1)
    with pytest.raises(ZeroDivisionError), errors_shared(peers.group):
        raise ZeroDivisionError("a bug")
    told = json.loads(peers.values[errors._KEY])
    assert told["rank"] == 1
    assert "a bug" in told["trace"]


@pytest.mark.parametrize("error", [RuntimeError("[gloo] Connection closed"), ValueError("echo")])
def test_a_worker_raises_the_error_that_a_peer_has_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    peers = Peers(monkeypatch, 1)
    peers.values[errors._KEY] = errors._account(0, ZeroDivisionError("the cause"))
    with pytest.raises(WorkerError, match="the cause"), errors_shared(peers.group):
        raise error
    assert peers.values[errors._READERS] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_of_failures_at_the_same_moment_the_first_counts_and_is_read(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    peers, waited = Peers(monkeypatch, rank), []
    monkeypatch.setattr(errors, "_wait_for_readers", lambda *_: waited.append(1))
    monkeypatch.setattr(errors, "_read_cause", lambda *_, wait: None)  # nobody had written yet
    peers.values[errors._KEY] = errors._account(1 - rank, ZeroDivisionError("the first"))
    with pytest.raises(WorkerError, match="the first"), errors_shared(peers.group):
        raise ZeroDivisionError("the second")
    assert peers.values[errors._READERS] == 1
    assert waited == []


ECHO = RuntimeError("[gloo] Connection closed")


@pytest.mark.parametrize("is_late", [False, True])
def test_an_echo_that_a_peer_has_left_gives_way_to_a_cause(
    monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """A peer may be told of a broken connection before the one that broke it."""
    peers = Peers(monkeypatch, 1)
    if is_late:  # it comes between our look and our word
        monkeypatch.setattr(errors, "_read_cause", lambda *_, wait: None)
    peers.values[errors._KEY] = errors._account(0, ECHO)
    with pytest.raises(ZeroDivisionError), errors_shared(peers.group):
        raise ZeroDivisionError("the cause")
    told = json.loads(peers.values[errors._KEY])
    assert (told["rank"], told["is_cause"]) == (1, True)
    assert errors._READERS not in peers.values


def test_an_echo_gives_way_to_none_but_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers(monkeypatch, 1)
    peers.values[errors._KEY] = errors._account(0, ECHO)
    with pytest.raises(WorkerError, match="worker 0 failed"), errors_shared(peers.group):
        raise ECHO
    assert json.loads(peers.values[errors._KEY])["rank"] == 0


def test_of_two_causes_that_find_an_echo_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has taken its place between our look and our word."""
    peers = Peers(monkeypatch, 1)
    echo = errors._account(0, ECHO)
    peers.values[errors._KEY] = errors._account(0, ZeroDivisionError("the first"))
    monkeypatch.setattr(errors, "_read_cause", lambda *_, wait: echo)
    with pytest.raises(WorkerError, match="the first"), errors_shared(peers.group):
        raise ZeroDivisionError("the second")
    assert peers.values[errors._READERS] == 1


@pytest.mark.parametrize("carried", [False, True])
def test_worker_0_stays_for_readers_of_what_they_do_not_know_yet(
    monkeypatch: pytest.MonkeyPatch, carried: bool
) -> None:
    peers, waited = Peers(monkeypatch, 0), []
    monkeypatch.setattr(errors, "_wait_for_readers", lambda *_: waited.append(1))
    monkeypatch.setattr(errors, "gather_texts", lambda text, group: [text, ""])
    with pytest.raises(ZeroDivisionError), errors_shared(peers.group):  # noqa: PT012
        if carried:
            with all_or_none(peers.group):
                raise ZeroDivisionError
        raise ZeroDivisionError
    assert waited == ([] if carried else [1])
    assert ("break" in peers.course) != carried  # a peer may still be receiving what is carried
    assert errors._KEY in peers.values

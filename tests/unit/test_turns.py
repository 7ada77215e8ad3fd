from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dist_embed.storage import turns
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ObjectStore
from dist_embed.storage.turns import NoTurn, taking_turns


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCK_SECONDS", "OBJECT_SECONDS", "RENEW_SECONDS"):
        monkeypatch.setattr(turns, name, 0.002)


@pytest.fixture(params=["lock", "store", "no locks"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder where processes wait for each other by a lock, or by an object."""
    if request.param == "store":
        return f"memory://turns/{tmp_path.name}"
    if request.param == "no locks":

        def refuse(handle: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return str(tmp_path / "folder")


def test_one_waits_for_the_other_and_says_so_once(folder: str) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with taking_turns(folder, "work", lambda: said.append("waiting")):
            order.append("second")

    with taking_turns(folder, "work", lambda: said.append("first waits")):
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.001)
        with taking_turns(folder, "other", lambda: said.append("of another kind")):
            time.sleep(0.01)
        order.append("first")
    thread.join(30)
    assert (said, order) == (["waiting"], ["first", "second"])
    assert storage.names_in(folder) == []


def test_a_wait_has_an_end(folder: str) -> None:
    said: list[str] = []
    with taking_turns(folder, "work", lambda: None) as still_ours:
        with (
            pytest.raises(NoTurn, match=r"did not end within 0 s"),
            taking_turns(folder, "work", lambda: said.append("waiting"), longest=0.01),
        ):
            pass
        assert still_ours()
    assert said == ["waiting"]


def test_an_error_gives_the_turn_away(folder: str) -> None:
    with (
        pytest.raises(ValueError, match="of the block"),
        taking_turns(folder, "work", lambda: None),
    ):
        raise ValueError("of the block")
    with taking_turns(folder, "work", pytest.fail):
        pass


def test_an_object_that_nobody_renews_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"memory://turns/{tmp_path.name}"
    storage.write_text(f"{folder}/work.json", "somebody 7\n")
    monkeypatch.setattr(turns, "STALE_SECONDS", 0.5)
    start = time.monotonic()
    with taking_turns(folder, "work", lambda: None) as still_ours:
        assert time.monotonic() - start > 0.5
        assert still_ours()
        # One that is renewed is not.
        beats = set()
        until = time.monotonic() + 60
        while time.monotonic() < until and len(beats) < 3:
            beats.add(storage.read_text(f"{folder}/work.json"))
        assert len(beats) == 3
        with pytest.raises(NoTurn), taking_turns(folder, "work", lambda: None, longest=1.0):
            pass
        # Who has been taken for dead hears of it, and leaves the other one's object alone.
        storage.write_text(f"{folder}/work.json", "other 0\n")
        assert not still_ours()
    assert storage.read_text(f"{folder}/work.json") == "other 0\n"


def test_a_store_without_conditional_puts_lets_one_of_two_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"memory://turns/{tmp_path.name}"

    def put(store: ObjectStore, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(store.uri, name), data)

    monkeypatch.setattr(ObjectStore, "create", put)
    with taking_turns(folder, "work", pytest.fail) as first:
        with taking_turns(folder, "work", pytest.fail) as second:
            assert (first(), second()) == (False, True)
        assert not first()


def test_a_lock_whose_file_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes it as it ends: who has opened it before must not hold what is gone."""
    path, original = tmp_path / "work.lock", fcntl.flock
    calls: list[Any] = []

    def removed_first(handle: int, how: int) -> None:
        if not calls:
            path.unlink()
        calls.append(handle)
        original(handle, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with taking_turns(str(tmp_path), "work", pytest.fail):
        assert len(calls) == 2
        assert path.exists()


def test_a_late_beat_does_not_bring_back_what_was_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write, beating = f"memory://turns/{tmp_path.name}", storage.write_text, []

    def slow(uri: str, text: str) -> None:
        beating.append(text)
        time.sleep(0.05)
        write(uri, text)

    monkeypatch.setattr(storage, "write_text", slow)
    with taking_turns(folder, "work", lambda: None):
        while not beating:
            time.sleep(0.001)
        (thread,) = (one for one in threading.enumerate() if one.name == "renews a turn")
        assert thread.daemon  # no process lives on for it
    assert not thread.is_alive()
    time.sleep(0.06)
    assert storage.names_in(folder) == []


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with taking_turns(str(tmp_path), "work", lambda: None):
        held = len(os.listdir("/proc/self/fd"))
        with pytest.raises(NoTurn), taking_turns(str(tmp_path), "work", lambda: None, 0.01):
            pass
        assert len(os.listdir("/proc/self/fd")) == held
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "work.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"), taking_turns(str(tmp_path), "work", int):
        pass
    assert not (tmp_path / "victim").exists()

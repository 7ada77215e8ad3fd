"""What one worker of two leaves in the group's store while it saves, and what becomes of it."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.checkpoint import parts as parts_module
from dist_embed.checkpoint import saver as saver_module
from dist_embed.checkpoint import write
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.parts import PartLate, PartMissing, Parts
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.save_under_way import Save
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.write import Description
from dist_embed.parallel.group import Group
from dist_embed.parallel.rendezvous import hosted_store
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import keeping

ATTEMPT = "step-000000001-20260101T000000Z-00000000"
CHUNKS = 5
DESCRIPTION = Description(1, "", {}, {}, "{}")


class Notes:
    """A group's store in this process; ``broken`` names the methods that raise."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.broken: set[str] = set()
        self.before_each: Callable[[str], None] = lambda method: None
        self.connections = 0

    def _called(self, method: str) -> None:
        self.before_each(method)
        if method in self.broken:
            raise RuntimeError("Broken pipe")

    def add(self, key: str, amount: int) -> int:
        self._called("add")
        self.values[key] = self.values.get(key, 0) + amount
        return int(self.values[key])

    def set(self, key: str, text: str) -> None:
        self._called("set")
        self.values[key] = text

    def check(self, keys: list[str]) -> bool:
        self._called("check")
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        self._called("get")
        return str(self.values[key]).encode()

    def delete_key(self, key: str) -> None:
        self._called("delete_key")
        self.values.pop(key, None)

    def end_of(self, rank: int) -> str | None:
        return self.values.get(f"dist_embed/{ATTEMPT}/end/{rank}")


class TrainingsConnection:
    """On this one training's threads wait: nobody else may use it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def clone(self) -> Notes:
        self._notes.connections += 1
        return self._notes


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    monkeypatch.setattr(
        parts_module.dist.distributed_c10d,
        "_get_default_store",
        lambda: TrainingsConnection(notes),
    )
    monkeypatch.setattr(saver_module, "write_rows", partial(write.write_rows, chunk_bytes=16))
    return notes


def saver_of(uri: str, rank: int, **changes: float) -> Saver:
    store = ObjectStore(uri)
    group = Group(rank, 2, 2, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]
    times = {"timeout_seconds": 30.0, "drain_seconds": 0.0} | changes
    settings = CheckpointSection(max_failures=0, **times)
    pruner = Pruner(store, keeping(1, 0, 0, 1.0))
    return Saver(store, group, settings, pruner, report=lambda line: None)


def begin(saver: Saver, *, given_up: bool = False) -> Save:
    """As `Saver.save` does, without an exchange."""
    save = saver._under_way = Save(1, ATTEMPT, time.monotonic(), 0.0)
    if given_up:
        save.given_up.set()
    rows = [Rows("t", 0, torch.zeros(CHUNKS, 4))]
    save.thread = threading.Thread(
        target=saver._carry_out, args=(save, DESCRIPTION, rows), daemon=True
    )
    save.thread.start()
    return save


def ended(save: Save) -> BaseException | None:
    assert save.thread is not None
    save.thread.join(30)
    assert save.has_ended
    return save.error


def test_every_chunk_is_noted_and_that_all_is_written(notes: Notes, tmp_path: Path) -> None:
    assert ended(begin(saver_of(str(tmp_path), 1))) is None
    assert notes.values[f"dist_embed/{ATTEMPT}/progress/1"] == CHUNKS
    assert notes.end_of(1) == "1"


def test_a_note_of_progress_that_fails_does_no_harm(notes: Notes, tmp_path: Path) -> None:
    notes.broken = {"add"}
    assert ended(begin(saver_of(str(tmp_path), 1))) is None
    assert notes.end_of(1) == "1"


def test_the_last_note_decides(notes: Notes, tmp_path: Path) -> None:
    notes.broken = {"set"}
    assert str(ended(begin(saver_of(str(tmp_path), 1)))) == "Broken pipe"


@pytest.mark.parametrize("broken", [False, True])
def test_a_writer_that_fails_says_so_and_keeps_its_cause(
    notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    error = OSError(errno.EIO, "Input/output error")

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(ObjectStore, "put", fail)
    notes.broken = {"set"} if broken else set()
    assert ended(begin(saver_of(str(tmp_path), 1))) is error
    assert notes.end_of(1) == (None if broken else "0")


def test_worker_0_is_told_at_once_of_another_s_failure(notes: Notes, tmp_path: Path) -> None:
    save = begin(saver_of(str(tmp_path), 0, timeout_seconds=1000.0))
    notes.set(f"dist_embed/{ATTEMPT}/end/1", "0")
    assert str(ended(save)) == "worker 1 has failed"


def test_the_quiet_time_grows_with_the_time_to_drain(
    notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "QUIET_SECONDS", 0.1)
    for drain_seconds, least in ((0.0, 0.1), (1.0, 0.5)):
        saver = saver_of(str(tmp_path / str(drain_seconds)), 0, drain_seconds=drain_seconds)
        began = time.monotonic()
        save = begin(saver)
        save.hurried.set()
        late = ended(save)
        assert isinstance(late, PartLate)
        assert "worker 1 had not written" in str(late)
        assert time.monotonic() - began > least


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_given_up_uses_the_group_s_store_no_more(
    notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Worker 0 while it looks for the others; another one while it writes."""
    writing, over = threading.Event(), threading.Event()
    put = ObjectStore.put

    def hold(*args: Any) -> None:
        writing.set()
        assert over.wait(30)
        put(*args)

    if rank == 1:
        monkeypatch.setattr(ObjectStore, "put", hold)
        monkeypatch.setattr(saver_module, "GIVE_UP_SECONDS", 0.01)
    saver = saver_of(str(tmp_path), rank)
    looked, used = threading.Event(), list[str]()
    notes.before_each = lambda method: looked.set() if method == "check" else None
    save = begin(saver)
    assert (writing if rank == 1 else looked).wait(30)
    saver.close()
    if rank == 0:
        assert save.has_ended  # within the second that it is given
    notes.before_each = used.append
    over.set()
    assert ended(save) is not None
    assert used == []


def test_who_is_given_up_at_once_does_not_even_connect(
    notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingsConnection, "__init__", lambda *args: None)  # has no `clone`
    assert "given up" in str(ended(begin(saver_of(str(tmp_path), 1), given_up=True)))


def test_before_each_call_of_the_group_s_store_it_is_asked_whether_to_go_on(notes: Notes) -> None:
    seen: list[str] = []
    notes.before_each = seen.append
    group = Group(0, 2, 2, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]

    def parts(attempt: str, earlier: Parts | None = None) -> Parts:
        return Parts(attempt, group, earlier, go_on=lambda: seen.append("look"))

    one = parts("one")
    assert seen == ["look"]  # before it connects
    one.note_failed()
    notes.set("dist_embed/two/end/1", "0")
    two = parts("two", one)
    assert (
        notes.connections == 2
    )  # a network may have dropped one that was idle since the last save
    two.note_progress()
    two.note_written([])
    with pytest.raises(PartMissing):
        two.collect(0.0, 0.0, hurried=threading.Event())
    del notes.values["dist_embed/two/end/1"]
    hurried = threading.Event()
    hurried.set()
    with pytest.raises(PartMissing):
        two.collect(0.0, 0.0, hurried=hurried)
    assert set(seen) == {"look", "set", "add", "check", "get", "delete_key"}
    calls = [at for at, what in enumerate(seen) if what != "look"]
    by_the_test = seen.index("set", seen.index("set") + 1)
    assert all(seen[at - 1] == "look" for at in calls if at != by_the_test)


class Slow:
    """Takes its time when the interpreter removes it, at its end: there threads meet theirs."""

    def __del__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        sleep(0.3)


def end_beside_a_save(uri: str, hanging: bool) -> None:
    """A worker 0 that ends by an error, with no time to drain, while worker 1 is missing or its own
    disk does not answer.
    """
    if hanging:
        ObjectStore.put = lambda *args: threading.Event().wait()  # type: ignore[method-assign]
    parts_module._POLL_SECONDS = 0.0
    store = hosted_store()
    dist.init_process_group(
        "gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=30)
    )
    saver = saver_of(uri, 0)
    save = begin(saver)
    time.sleep(0.3)
    assert not save.has_ended
    saver.close()
    vars(sys)["slow"] = Slow()
    sys.exit(7)


@pytest.mark.heavy  # a start of Python; what keeps it so is shown above in milliseconds
@pytest.mark.parametrize("hanging", [False, True])
def test_the_interpreter_ends_well_beside_a_save_that_is_given_up(
    tmp_path: Path, hanging: bool
) -> None:
    program = f"from {__name__} import *; end_beside_a_save({str(tmp_path)!r}, {hanging})"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 7, ended.stderr

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from s3fs.errors import translate_boto_error

from dist_embed.errors import StorageError, StoreUnavailable, in_a_line
from dist_embed.storage import objects, retry, uri
from dist_embed.storage.objects import ForeignObject, ObjectStore
from tests.unit.clock import Clock


def memory_store(retry_seconds: float = 60.0) -> ObjectStore:
    return ObjectStore(f"memory://objects-{uuid.uuid4().hex}", retry_seconds=retry_seconds)


@pytest.fixture(params=["local", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A store in a fresh folder that is not there yet."""
    if request.param == "memory":
        return memory_store()
    return ObjectStore(f"{'file://' if request.param == 'file' else ''}{tmp_path}/run")


@pytest.fixture
def local(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "run"))


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A store that is no local disk, with short pauses between tries."""
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(retry, "LONGEST_WAIT_SECONDS", 0.004)
    return memory_store()


class Calls:
    """Replaces a method of the file system below `remote` by one that fails first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.count = 0
        self.errors: list[BaseException] = []
        # What to do in a call, instead of the method itself, which is its first argument.
        self.instead: Callable[..., Any] = lambda whole, *args, **kwargs: whole(*args, **kwargs)
        original = getattr(MemoryFileSystem, method)

        def call(fs: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.errors:
                raise self.errors.pop(0)

            def whole(*args: Any, **kwargs: Any) -> Any:
                return original(fs, *args, **kwargs)

            return self.instead(whole, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, method, call)


def test_what_is_put_is_read(store: ObjectStore) -> None:
    store.put("objects/a/x", [b"0123", bytearray(b"45"), memoryview(b""), memoryview(b"6789")])
    assert store.read("objects/a/x") == b"0123456789"
    store.put("empty", [])
    assert store.read("empty") == b""


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 10, b"0123456789"), (0, None, b"0123456789"), (3, 7, b"3456"), (9, 10, b"9"),
     (8, 20, b"89"), (10, 12, b""), (12, 14, b""), (3, None, b"3456789"), (5, 5, b""), (6, 5, b"")],
)  # fmt: skip
def test_ranges(store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
    store.put("x", [b"0123456789"])
    assert store.read("x", start, end) == expected


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 9, b"89"), (10, 3, b""), (12, 3, b"")],
)
def test_ranges_into_a_buffer(store: ObjectStore, start: int, length: int, expected: bytes) -> None:
    store.put("x", [b"0123456789"])
    buffer = bytearray(b"#" * length)
    assert store.read_into("x", start, [memoryview(buffer)]) == len(expected)
    assert buffer == expected.ljust(length, b"#")
    with pytest.raises(FileNotFoundError):
        store.read_into("missing", start, [memoryview(buffer)])


def test_more_buffers_than_one_call_takes_are_filled(local: ObjectStore) -> None:
    content = os.urandom(5000)
    local.put("x", [content])
    for sizes in ([1] * 2500, [0, 3, 0, 1] * 700, [4990, 0, 20]):
        buffers = [bytearray(size) for size in sizes]
        expected = min(sum(sizes), 4990)
        assert local.read_into("x", 10, [memoryview(one) for one in buffers]) == expected
        assert b"".join(buffers)[:expected] == content[10 : 10 + expected]


def test_what_is_missing_is_told_apart(store: ObjectStore) -> None:
    for neighbour in ("x", "y"):  # without the folder, and with it
        for start, end in ((0, None), (2, 5)):
            with pytest.raises(FileNotFoundError):
                store.read("a/missing", start, end)
        store.put(f"a/{neighbour}", [b"1"])


def test_names_and_entries(store: ObjectStore) -> None:
    assert store.names("a") == []
    assert store.entries("a") == []
    began = time.time()
    for name in ("a/z", "a/b/deep/y", "a/b/x", "ab/other"):
        store.put(name, [name.encode()])
    assert store.names("a") == ["b", "z"]
    found = store.entries("a")
    assert {entry.name: entry.size_bytes for entry in found} == {
        "a/b/deep/y": 10, "a/b/x": 5, "a/z": 3,
    }  # fmt: skip
    # Some file systems keep times that are a tick behind the clock.
    assert all(began - 1 < entry.modified < time.time() + 1 for entry in found)


def test_names_see_what_another_writer_has_written(store: ObjectStore) -> None:
    other = ObjectStore(store.uri)
    store.put("a/x", [b""])
    assert other.names("a") == ["x"]
    store.put("a/y", [b""])
    assert other.names("a") == ["x", "y"]
    store.remove("a/x")
    assert other.names("a") == ["y"]


def test_an_object_has_no_names_below_it(store: ObjectStore) -> None:
    store.put("a", [b""])
    assert store.names("a") == []


def test_remove_takes_objects_and_folders_and_nothing_else(store: ObjectStore) -> None:
    for name in ("a/x", "a/y", "a/b/z", "ab/x"):
        store.put(name, [b"1"])
    store.remove("a/x")
    store.remove("a/x")
    assert store.names("a") == ["b", "y"]
    store.remove_folder("a")
    store.remove_folder("a")
    assert store.entries("a") == []
    assert store.read("ab/x") == b"1"


def test_remove_does_nothing_where_there_is_no_folder(local: ObjectStore) -> None:
    local.remove("nowhere/x")


BAD_NAMES = [
    "", ".", "..", "/", "/x", "../x", "a/..", "a/../x", "a/./x", "a//x", "a/", "x\0", "x\n", "a b",
    "~", "~/x", ".x", "a/.x", "-x", "X", "a/X", "x*", "a/?", "[x]", "a\\x", "a:x", "a%2e", "é",
    "x" * 201, "/".join("a" * 9), "memory://x", "file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:25])
def test_names_that_lead_elsewhere_are_refused(store: ObjectStore, name: str) -> None:
    calls: list[Callable[[str], object]] = [
        lambda n: store.put(n, [b"x"]), lambda n: store.create(n, b"x"), store.read, store.names,
        lambda n: store.read_into(n, 0, [memoryview(bytearray(1))]),
        store.entries, store.remove, store.remove_folder,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StorageError, match="not a name of an object below"):
            call(name)


def test_names_that_stay_below_are_taken(store: ObjectStore) -> None:
    for name in ("0", "x" * 200, "a/b.c_D-9", "step-000000001/x..y", "/".join("a" * 8)):
        store.put(name, [name.encode()])
        assert store.read(name) == name.encode()
        store.remove_folder(name.split("/")[0]) if "/" in name else store.remove(name)


def test_create_writes_once(store: ObjectStore) -> None:
    store.create("a/x", b"first")
    with pytest.raises(FileExistsError):
        store.create("a/x", b"second")
    assert store.read("a/x") == b"first"
    assert store.names("a") == ["x"]


# --- local disks ---


def test_put_refuses_a_name_that_is_taken(local: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").write_bytes(b"untouched")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "run" / "dangling").symlink_to(tmp_path / "new")
    local.put("x", [b"first"])
    for name in ("x", "link", "dangling"):
        with pytest.raises(FileExistsError):
            local.put(name, [b"second"])
        with pytest.raises(FileExistsError):
            local.create(name, b"second")
    assert local.read("x") == b"first"
    assert (tmp_path / "outside").read_bytes() == b"untouched"
    assert not (tmp_path / "new").exists()


def test_links_that_lead_out_are_not_followed(local: ObjectStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"secret")
    run = tmp_path / "run"
    run.mkdir()
    # Its name begins like that of the folder itself.
    (tmp_path / "run-2").write_bytes(b"secret")
    (run / "file").symlink_to(outside / "x")
    (run / "folder").symlink_to(outside)
    (run / "relative").symlink_to("../run-2")
    for name in ("file", "folder/x", "relative"):
        with pytest.raises(ForeignObject, match="leads out of"):
            local.read(name)
        with pytest.raises(ForeignObject, match="leads out of"):
            local.read_into(name, 0, [memoryview(bytearray(1))])
    (run / "here").write_bytes(b"0123")
    (run / "inner").symlink_to("here")
    assert local.read("inner", 1, 3) == b"12"


def test_nothing_is_written_listed_or_removed_behind_a_link_that_leads_out(
    local: ObjectStore, tmp_path: Path
) -> None:
    outside = tmp_path / "run-2"
    outside.mkdir()
    (outside / "x").write_bytes(b"theirs")
    local.put("here/x", [b"ours"])
    (tmp_path / "run" / "folder").symlink_to(outside)
    calls: list[Callable[[], object]] = [
        lambda: local.put("folder/y", [b"1"]), lambda: local.create("folder/y", b"1"),
        lambda: local.remove("folder/x"), lambda: local.remove_folder("folder/x"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ForeignObject, match="leads out of"):
            call()
    assert local.entries("folder") == []
    local.remove_folder("folder")  # the link, not what it leads to
    assert not (tmp_path / "run" / "folder").is_symlink()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"x": b"theirs"}
    assert local.read("here/x") == b"ours"


def test_a_store_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    store = ObjectStore(str(tmp_path / "run"))
    store.put("a/x", [b"1"])
    assert store.read("a/x") == b"1"


@pytest.mark.timeout(30)
def test_what_is_no_file_is_not_read(local: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "run" / "folder").mkdir(parents=True)
    os.mkfifo(tmp_path / "run" / "pipe")
    (tmp_path / "run" / "loop").symlink_to("loop")
    for name in ("pipe", "folder", "loop"):
        with pytest.raises(ForeignObject, match=r"regular file|link to itself"):
            local.read(name)
        with pytest.raises(ForeignObject, match=r"regular file|link to itself"):
            local.read_into(name, 0, [memoryview(bytearray(1))])


def test_put_and_create_are_durable(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(local.uri)
    synced: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            # Said of a folder: whose names of folders in it are durable now.
            place = Path(os.readlink(f"/proc/self/fd/{handle}"))
            inside = sorted(p.name for p in place.iterdir() if p.is_dir())
            synced.append(f"{place.relative_to(root.parent)} {inside}")
        else:
            synced.append(f"file of {status.st_size}")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    # Each folder that is made on the way, before anything is written in it.
    made = [". ['run']", "run ['a']", "run/a ['b']"]
    local.put("a/b/x", [b"123", b"4"])
    assert synced == [*made, "file of 4", "run/a/b []"]
    synced.clear()
    local.put("a/b/y", [b"123"])
    assert synced == ["file of 3", "run/a/b []"]
    synced.clear()
    local.create("m/x", b"12345")
    assert synced == ["run ['a', 'm']", "file of 5", "run/m []"]
    synced.clear()
    local.create("m/y", b"1")
    local.remove("m/y")
    assert synced == ["file of 1", "run/m []", "run/m []"]


def test_a_full_disk_is_told_with_the_name(local: ObjectStore) -> None:
    def parts() -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*a/x") as caught:
        local.put("a/x", parts())
    assert caught.value.errno == errno.ENOSPC


def opening_fails(monkeypatch: pytest.MonkeyPatch, errors: dict[int, int]) -> None:
    """With an error by the flags of a file that is opened, the first that fits. Without files that
    have no name it is as on NFS.
    """
    original = os.open

    def fail(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        for asked, number in errors.items():
            if flags & asked == asked:
                raise OSError(number, os.strerror(number))
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize("unnamed_files", [True, False])
def test_only_one_of_many_creates(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch, unnamed_files: bool
) -> None:
    if not unnamed_files:
        opening_fails(monkeypatch, {os.O_TMPFILE: errno.EOPNOTSUPP})
    outcomes: dict[int, bool] = {}
    together = threading.Barrier(8)

    def create(number: int) -> None:
        together.wait()
        try:
            local.create("a/x", b"%d" % number)
            outcomes[number] = True
        except FileExistsError:
            outcomes[number] = False

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    (winner,) = (number for number, won in outcomes.items() if won)
    assert local.read("a/x") == b"%d" % winner
    assert local.names("a") == ["x"]


def test_a_create_that_fails_leaves_nothing(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("a/other", [b""])

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        local.create("a/x", b"1")
    monkeypatch.undo()
    assert local.names("a") == ["other"]
    local.create("a/x", b"2")
    assert local.read("a/x") == b"2"


def test_a_create_that_fails_without_unnamed_files_leaves_nothing_and_takes_nothing(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the manifest is written under its name."""

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    local.put("a/other", [b""])
    opening_fails(monkeypatch, {os.O_TMPFILE: errno.EOPNOTSUPP})
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            local.create("a/x", b"1")
        assert local.names("a") == ["other"]
    local.create("a/x", b"2")
    with pytest.raises(FileExistsError):
        local.create("a/x", b"3")
    assert local.read("a/x") == b"2"


def test_a_create_that_cannot_open_takes_nothing_of_another(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, when the server fails in the call that would make the file."""
    local.create("a/x", b"another writer's")
    opening_fails(monkeypatch, {os.O_TMPFILE: errno.EOPNOTSUPP, os.O_CREAT: errno.EIO})
    with pytest.raises(OSError, match="Input/output error"):
        local.create("a/x", b"1")
    assert local.read("a/x") == b"another writer's"


def test_an_error_that_tells_nothing_of_unnamed_files_is_one(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening_fails(monkeypatch, {os.O_TMPFILE: errno.ENOSPC})
    with pytest.raises(OSError, match="No space left"):
        local.create("a/x", b"1")
    assert local.names("a") == []


def test_what_is_put_may_be_read_by_others_as_the_umask_says(local: ObjectStore) -> None:
    earlier = os.umask(0o022)
    try:
        before = len(os.listdir("/proc/self/fd"))
        local.put("x", [b"1"])
        local.create("y", b"2")
    finally:
        os.umask(earlier)
    for name in ("x", "y"):
        assert (Path(local.uri) / name).stat().st_mode & 0o777 == 0o644
    assert local.read("x") + local.read("y") == b"12"
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_cause_is_told_where_cleaning_up_fails_too(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    def parts() -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*a/x"):
        local.put("a/x", parts())


@pytest.mark.parametrize("vanishing", ["file", "folder", "all"])
def test_a_folder_is_removed_beside_others_who_remove_it(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch, vanishing: str
) -> None:
    for name in ("a/b/x", "a/b/y", "a/c/z", "a/w"):
        local.put(name, [b"1"])
    root, original, done = Path(local.uri), os.scandir, []

    def scandir(place: Any) -> Any:
        """Another removes what has just been listed."""
        found = list(original(place))
        if not done and any(entry.name == ("y" if vanishing == "file" else "b") for entry in found):
            done.append(vanishing)
            if vanishing == "file":
                (root / "a" / "b" / "y").unlink()
            elif vanishing == "folder":
                shutil.rmtree(root / "a" / "b")
            else:
                shutil.rmtree(root / "a")
        return closing_iterator(found)

    monkeypatch.setattr(os, "scandir", scandir)
    local.remove_folder("a")
    assert done
    monkeypatch.undo()
    assert not (root / "a").exists()


class closing_iterator(list[Any]):
    """What `os.scandir` gives: it may be used in a ``with`` block."""

    def __enter__(self) -> Any:
        return iter(self)

    def __exit__(self, *error: object) -> None:
        pass


def test_a_folder_that_will_not_go_is_an_error(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("a/x", [b"1"])

    def rmtree(path: Any) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(OSError, match="others are changing it"):
        local.remove_folder("a")
    assert local.names("a") == ["x"]


def test_an_error_of_a_local_disk_counts_at_once(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("a/x", [b""])
    tries = 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal tries
        tries += 1
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        local.names("a")
    assert tries == 1


# --- object stores ---

TRANSIENT = [
    OSError(errno.EBUSY, "Please reduce your request rate."),
    OSError(errno.EREMOTEIO, "We encountered an internal error."),
    TimeoutError("timed out"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    FSTimeoutError(),
    asyncio.CancelledError(),  # of a client's event loop, and no Exception
]


@pytest.mark.parametrize("method", ["pipe_file", "cat_file", "ls", "find", "rm_file", "rm"])
def test_calls_are_repeated_while_the_store_fails(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls = Calls(monkeypatch, method)
    remote.put("d/a", [b"1"])
    for call in (
        lambda: remote.put("d/b", [b"12"]), lambda: remote.create("d/c", b"123"),
        lambda: remote.read("d/b", 1, 2), lambda: remote.names("d"), lambda: remote.entries("d"),
        lambda: remote.remove("d/a"),
    ):  # fmt: skip
        calls.errors = list(TRANSIENT)
        call()
    assert remote.names("d") == ["b", "c"]
    assert (remote.read("d/b"), remote.read("d/c")) == (b"12", b"123")
    calls.errors = list(TRANSIENT)
    remote.remove_folder("d")
    calls.errors = []
    assert remote.names("d") == []
    assert calls.count > len(TRANSIENT)


def test_no_listing_is_an_old_one(remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client such as s3fs keeps listings; another writer's objects are to be seen."""
    order: list[str] = []
    for method in ("ls", "find", "rm_file", "rm", "invalidate_cache"):
        original = getattr(MemoryFileSystem, method)

        def call(*args: Any, _method: str = method, _original: Any = original, **more: Any) -> Any:
            order.append(_method)
            return _original(*args, **more)

        monkeypatch.setattr(MemoryFileSystem, method, call)
    for act, method in (
        (remote.names, "ls"), (remote.entries, "find"), (remote.remove, "rm_file"),
        (remote.remove_folder, "rm"),
    ):  # fmt: skip
        remote.put("d/x", [b"1"])
        order.clear()
        act("d/x" if method == "rm_file" else "d")
        assert order[: 1 + order.index(method)][-2:] == ["invalidate_cache", method]


def test_a_store_that_stays_away_is_given_up(
    monkeypatch: pytest.MonkeyPatch, remote: ObjectStore
) -> None:
    monkeypatch.setattr(retry, "time", Clock())
    calls = Calls(monkeypatch, "cat_file")
    calls.errors = [OSError(errno.EBUSY, "Please reduce your request rate.")] * 1000
    impatient = ObjectStore(remote.uri, retry_seconds=0.05)
    with pytest.raises(
        StoreUnavailable,
        match=rf"could not read a/x in {remote.uri} within 0 s.*OSError: .*reduce your request",
    ) as caught:
        impatient.read("a/x")
    assert 10 < calls.count < 100
    assert isinstance(caught.value.__cause__, OSError)


def test_pauses_grow_and_end_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    calls = Calls(monkeypatch, "ls")
    calls.errors = [OSError(errno.EBUSY, "busy")] * 1000
    with pytest.raises(StoreUnavailable, match="within 120 s"):
        memory_store(retry_seconds=120.0).names("a")
    assert calls.count == len(clock.pauses) + 1
    assert sum(clock.pauses) <= 120.0
    for number, pause in enumerate(clock.pauses[:6]):  # twice as long each, spread out
        longest = min(retry.FIRST_WAIT_SECONDS * 2**number, retry.LONGEST_WAIT_SECONDS)
        assert longest / 2 <= pause <= longest
    assert all(retry.LONGEST_WAIT_SECONDS / 2 <= pause <= retry.LONGEST_WAIT_SECONDS
               for pause in clock.pauses[6:])  # fmt: skip
    assert len(set(clock.pauses)) == len(clock.pauses)


@pytest.mark.parametrize(("seconds", "tries"), [(5.0, 2), (0.0, 1)])
def test_what_takes_longer_than_its_limit_is_repeated_once(
    monkeypatch: pytest.MonkeyPatch, seconds: float, tries: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    calls = Calls(monkeypatch, "ls")

    def fail(*args: Any, **kwargs: Any) -> None:
        clock.sleep(10.0)
        raise OSError(errno.EBUSY, "busy")

    calls.instead = fail
    with pytest.raises(StoreUnavailable, match="busy"):
        memory_store(retry_seconds=seconds).names("a")
    assert calls.count == tries


class NoCredentialsError(Exception):
    """As botocore's."""


NoCredentialsError.__module__ = "botocore.exceptions"


class HttpResponseError(Exception):
    """As azure's, gcsfs's (``code``) and webdav4's."""

    def __init__(self, status: int, name: str = "status_code") -> None:
        super().__init__("the server's answer\nRequestId: 7")
        setattr(self, name, status)


HttpResponseError.__module__ = "azure.core.exceptions"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(HttpResponseError(401), StorageError), (HttpResponseError(403, "code"), StorageError),
     (HttpResponseError(404), StorageError), (OSError("Forbidden: http://x"), StorageError),
     (FileNotFoundError("gone"), FileNotFoundError), (PermissionError("403"), StorageError),
     (ValueError("a mistake of ours"), ValueError), (KeyError("x"), KeyError)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
def test_what_repeating_does_not_change_counts_at_once(
    remote: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    raised: type[Exception],
) -> None:
    calls = Calls(monkeypatch, "cat_file")
    calls.errors = [error]
    with pytest.raises(raised) as caught:
        remote.read("x")
    assert calls.count == 1
    assert not isinstance(caught.value, StoreUnavailable)
    if raised is StorageError:
        assert str(caught.value).startswith(f"cannot read x in {remote.uri}: ")
        assert "\n" not in str(caught.value)


def test_an_error_is_told_whole_in_a_line_without_passwords() -> None:
    denied = OSError("Forbidden: https://storage/b/o/x\n\n  me has no storage.objects.get ")
    assert (
        in_a_line(denied)
        == "OSError: Forbidden: https://storage/b/o/x me has no storage.objects.get"
    )
    cut = in_a_line(OSError("x" * 480 + " https://me:secret-password@host/x"))
    assert "secret" not in cut
    assert len(cut) <= len("OSError: ") + 500
    assert in_a_line(OSError()) == "OSError"


@pytest.mark.parametrize(
    ("code", "status"),
    [("InvalidToken", 400), ("AuthorizationHeaderMalformed", 400), ("InvalidBucketName", 400),
     ("PermanentRedirect", 301)],
)  # fmt: skip
def test_answers_of_s3_that_stay_the_same_count_at_once(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    calls = Calls(monkeypatch, "cat_file")
    reply = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    calls.errors = [translate_boto_error(ClientError(reply, "GetObject"))]
    with pytest.raises(StorageError, match="cannot read x") as caught:
        remote.read("x")
    assert calls.count == 1
    assert not isinstance(caught.value, StoreUnavailable)


class ClientAuthenticationError(HttpResponseError):
    """As azure's, of its token's server."""


ClientAuthenticationError.__module__ = "azure.core.exceptions"


class HttpError(Exception):
    """As gcsfs's."""

    code = 401


HttpError.__module__ = "gcsfs.retry"


@pytest.mark.parametrize(
    "error",
    [NoCredentialsError("Unable to locate credentials"), ClientAuthenticationError(400),
     ClientAuthenticationError(401), HttpError("Invalid Credentials, 401")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_credentials_get_some_seconds_to_be_renewed(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    remote, calls = memory_store(), Calls(monkeypatch, "cat_file")
    remote.put("x", [b"1"])
    calls.errors = [error]
    assert remote.read("x") == b"1"
    calls.errors, clock.pauses = [error] * 1000, []
    with pytest.raises(StorageError, match="cannot read x") as caught:
        remote.read("x")
    assert not isinstance(caught.value, StoreUnavailable)
    assert 1 < sum(clock.pauses) <= retry.CREDENTIAL_SECONDS


@pytest.mark.parametrize(
    "refused",
    [OSError(errno.EINVAL, "The requested range is not satisfiable"), HttpResponseError(416),
     HttpResponseError(416, "code")],
)  # fmt: skip
def test_a_range_behind_the_end_is_empty_where_the_store_refuses_it(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, refused: Exception
) -> None:
    remote.put("x", [b"0123"])
    calls = Calls(monkeypatch, "cat_file")
    calls.errors = [refused]
    assert remote.read("x", 4, 9) == b""
    # Within the object the same answer is an error like any other.
    calls.errors = [refused, refused]
    assert remote.read("x", 1, 3) == b"12"
    assert calls.count == 4


def test_create_survives_a_lost_reply(remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, "pipe_file")

    def write_then_fail(whole: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        whole(*args, **kwargs)
        raise ConnectionResetError("the reply was lost")

    calls.instead = write_then_fail
    remote.create("m/x", b"mine")
    assert calls.count == 1
    assert remote.read("m/x") == b"mine"
    calls.instead = lambda whole, *args, **kwargs: whole(*args, **kwargs)
    remote.put("m/y", [b"another's"])
    calls.instead = write_then_fail
    with pytest.raises(FileExistsError, match="another writer"):
        remote.create("m/y", b"mine")
    assert calls.count == 2
    assert remote.read("m/y") == b"another's"


def test_create_tells_a_lost_reply_from_another_writer(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one came first; the store refused, and the refusal was lost."""
    calls = Calls(monkeypatch, "pipe_file")

    def other_then_lost(whole: Callable[..., None], path: str, *args: Any, **kwargs: Any) -> None:
        if calls.count == 1:
            whole(path, b"another's")
            raise ConnectionResetError("the reply was lost")
        whole(path, *args, **kwargs)

    calls.instead = other_then_lost
    with pytest.raises(FileExistsError, match="another writer"):
        remote.create("m/x", b"mine")
    assert remote.read("m/x") == b"another's"
    assert calls.count == 1


@pytest.mark.parametrize("refusal", [FileExistsError("exists"), None])
def test_create_tells_the_one_who_came_second(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, refusal: Exception | None
) -> None:
    """The other one comes in after the look and before the put, or right after it where the file
    system ignores that the put is conditional.
    """
    calls = Calls(monkeypatch, "pipe_file")

    def other_comes_in(whole: Callable[..., None], path: str, *args: Any, **kwargs: Any) -> None:
        whole(path, b"another's")
        if refusal is not None:
            raise refusal

    calls.instead = other_comes_in
    with pytest.raises(FileExistsError, match="another writer"):
        remote.create("m/x", b"mine")
    assert remote.read("m/x") == b"another's"


@pytest.mark.parametrize("error", [TypeError("unexpected keyword 'mode'"), NotImplementedError()])
def test_a_file_system_without_conditions_is_written_to_without(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = Calls(monkeypatch, "pipe_file")
    modes: list[object] = []

    def old(whole: Callable[..., None], path: str, data: bytes, **kwargs: Any) -> None:
        modes.append(kwargs.get("mode"))
        if kwargs:
            raise error
        whole(path, data)

    calls.instead = old
    remote.create("m/x", b"mine")
    assert modes == ["create", None]
    assert remote.read("m/x") == b"mine"
    with pytest.raises(FileExistsError):
        remote.create("m/x", b"other")
    assert remote.read("m/x") == b"mine"


def test_create_is_conditional(remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, "pipe_file")
    modes: list[object] = []

    def record(whole: Callable[..., None], path: str, data: bytes, **kwargs: Any) -> None:
        modes.append(kwargs.get("mode"))
        whole(path, data, **kwargs)

    calls.instead = record
    remote.put("m/x", [b"1"])
    remote.create("m/y", b"2")
    assert modes == ["overwrite", "create"]


def test_where_conditions_are_ignored_create_looks_a_second_time(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def other_comes_in(seconds: float) -> None:
        pauses.append(seconds)
        remote.put("m/x", [b"another's"])

    monkeypatch.setattr(objects, "time", SimpleNamespace(sleep=other_comes_in))
    assert remote.keeps_conditions()
    remote.create("m/y", b"mine")
    assert pauses == []
    calls = Calls(monkeypatch, "pipe_file")
    calls.instead = lambda whole, path, data, **how: whole(path, data)
    assert not remote.keeps_conditions()
    with pytest.raises(FileExistsError, match="another writer"):
        remote.create("m/x", b"mine")
    assert pauses == [objects.SETTLE_SECONDS]
    remote.create("m/z", b"mine")
    assert uri.names_in(remote.uri) == ["m"]  # no trial is left


def test_a_trial_that_may_not_be_removed_answers_again(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = Calls(monkeypatch, "rm_file")
    removals.errors = [PermissionError(errno.EACCES, "Access Denied")] * 2
    for _ in range(2):
        assert remote.keeps_conditions()
        assert uri.names_in(remote.uri) == ["trial"]
    assert remote.keeps_conditions()
    assert uri.names_in(remote.uri) == []
    assert removals.count == 3


def test_a_trial_that_another_run_takes_away_tells_nothing_wrong(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, "pipe_file")

    def then_gone(whole: Callable[..., None], path: str, data: bytes, **how: Any) -> None:
        whole(path, data, **how)
        if data == b"1":  # the other run is done with its own trial now
            remote._fs.rm_file(path)

    calls.instead = then_gone
    assert remote.keeps_conditions()


def test_a_store_that_is_away_is_no_empty_one(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own `exists` and `find` say that nothing is there."""
    monkeypatch.setattr(retry, "time", Clock())

    def away(*args: Any, **more: Any) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    remote.put("m/x", [b"1"])
    for own in ("exists", "find"):
        monkeypatch.setattr(MemoryFileSystem, own, getattr(AbstractFileSystem, own))
    monkeypatch.setattr(MemoryFileSystem, "info", away)
    monkeypatch.setattr(MemoryFileSystem, "ls", away)
    for look in (lambda: remote.entries("m"), lambda: uri.exists(f"{remote.uri}/m/x")):
        with pytest.raises(StoreUnavailable, match="refused"):
            look()


class ServerOfS3:
    """Records puts to a store whose protocol is S3's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.calls = Calls(monkeypatch, "pipe_file")

        def put(whole: Callable[..., None], path: str, data: bytes, **how: Any) -> None:
            self.asked.append(how)
            if error is not None and "mode" in how:
                raise error
            whole(path, data)

        self.calls.instead = put
        monkeypatch.setattr(MemoryFileSystem, "protocol", ("s3", "s3a"))


def test_an_object_of_s3_is_put_in_one_part(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload of several that is broken off leaves them there, invisible and paid for."""
    server = ServerOfS3(monkeypatch, None)
    remote.put("m/x", [b"1", b"2"])
    remote.create("m/y", b"3")
    single = {"chunksize": objects.SINGLE_PUT_BYTES}
    assert server.asked == [single | {"mode": "overwrite"}, single | {"mode": "create"}]
    assert objects.SINGLE_PUT_BYTES > 64 * 2**20  # a chunk
    assert (remote.read("m/x"), remote.read("m/y")) == (b"12", b"3")
    monkeypatch.setattr(MemoryFileSystem, "protocol", "s3")
    remote.put("m/z", [b"1"])
    assert server.asked[2] == single | {"mode": "overwrite"}


def test_a_server_of_s3_without_conditions_is_written_to_without(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerOfS3(monkeypatch, OSError(errno.ENOSYS, "501 Not Implemented"))
    remote.create("m/x", b"mine")
    single = {"chunksize": objects.SINGLE_PUT_BYTES}
    assert server.asked == [single | {"mode": "create"}, single]
    assert remote.read("m/x") == b"mine"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EIO])
def test_another_answer_of_a_server_of_s3_is_an_error(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    impatient = ObjectStore(remote.uri, retry_seconds=0.0)
    server = ServerOfS3(monkeypatch, OSError(number, "no"))
    with pytest.raises(StoreUnavailable, match="could not write m/x"):
        impatient.put("m/x", [b"mine"])
    if number != errno.ENOSYS:
        with pytest.raises(StoreUnavailable, match="could not create m/x"):
            impatient.create("m/x", b"mine")
    assert all("mode" in how for how in server.asked)
    assert impatient.names("m") == []


@pytest.mark.parametrize(
    ("info", "modified"),
    [({"mtime": 5.5, "created": 7.0}, 5.5), ({"created": 7.0}, 7.0), ({}, 0.0),
     ({"LastModified": datetime(1970, 1, 2, tzinfo=timezone.utc), "created": 7.0}, 86400.0),
     ({"mtime": None}, 0.0)],
)  # fmt: skip
def test_an_entry_s_time_is_that_of_the_store(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], modified: float
) -> None:
    path = remote.uri.removeprefix("memory:/")
    monkeypatch.setattr(
        MemoryFileSystem,
        "find",
        lambda fs, where, detail, on_error: {f"{path}/a/x": {"size": "3"} | info},
    )
    assert remote.entries("a") == [objects.Entry("a/x", 3, modified)]

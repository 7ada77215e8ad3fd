"""What is asked of a store, on each kind that README names."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.manifest import MANIFESTS
from dist_embed.checkpoint.retention import Pruner
from dist_embed.errors import StorageError, StoreUnavailable
from dist_embed.storage import bombs, calls
from dist_embed.storage import uri as storage
from dist_embed.storage.clients import filesystem
from dist_embed.storage.compressed import open_decompressed
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import keeping
from tests.integration.conftest import tiny_config
from tests.stores.conftest import EachStore, each_of
from tests.stores.kinds import KINDS, WRONG, forget_clients, used
from tests.stores.s3_server import Server
from tests.stores.two_checkpoints import NEWER, assert_holds, save, state_of

# After so long a refusal is to be told that repeating does not change: a promise, no measurement.
FINAL_SECONDS = 10.0


def another_process(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """A client that shares nothing with ours."""
    fs, path = filesystem(uri)
    return type(fs)(*fs.storage_args, **fs.storage_options, skip_instance_cache=True), path


def test_files_are_written_found_and_removed(each_store: EachStore) -> None:
    root = each_store.root
    deep = storage.join(root, "a", "b", "x.bin")
    assert not storage.exists(deep)
    assert storage.names_in(root) == []
    storage.write_bytes(deep, b"0123456789")
    storage.write_bytes(deep, b"012345")
    assert storage.read_bytes(deep) == b"012345"
    assert [storage.read_range(deep, *r) for r in ((0, 2), (2, 4), (4, 99), (6, 8), (7, 9))] == [
        b"01", b"23", b"45", b"", b"",
    ]  # fmt: skip
    assert storage.names_in(deep) == []
    storage.write_bytes(storage.join(root, "pieces", "y.txt"), b"one two")
    with storage.open_file(storage.join(root, "pieces", "y.txt")) as file:
        assert file.read() == b"one two"
    assert storage.names_in(root) == ["a", "pieces"]
    for name in ("2.txt", "1.txt", "3.md"):
        storage.write_text(storage.join(root, "many", name), name)
    found = storage.glob(storage.join(root, "many", "*.txt"))
    assert found == [storage.join(root, "many", f"{n}.txt") for n in (1, 2)]
    assert [storage.read_text(uri) for uri in found] == ["1.txt", "2.txt"]
    told = storage.stamp(deep)
    assert told.size_bytes == 6
    assert isinstance(told.modified, float)
    assert abs(told.modified - time.time()) < 300
    storage.remove(root)
    assert not storage.exists(deep)


def test_a_refused_export_leaves_the_file_that_was_there(each_store: EachStore) -> None:
    uri = storage.join(each_store.root, "new", "vectors.txt")
    for content in (b"good", b"better"):
        with storage.whole_file(uri) as file:
            file.write(content)
        assert storage.read_bytes(uri) == content

    def refuse() -> None:
        with storage.whole_file(uri) as file:
            file.write(b"half" * 1_000_000)
            file.flush()
            raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        refuse()
    assert storage.read_bytes(uri) == b"better"
    assert storage.names_in(storage.join(each_store.root, "new")) == ["vectors.txt"]


def test_objects(each_store: EachStore) -> None:
    store = ObjectStore(each_store.root, retry_seconds=5.0)
    assert store.names("d") == []
    assert store.entries("d") == []
    store.put("d/e/x", [b"01", b"234"])
    store.create("d/m", b"mine")
    with pytest.raises(FileExistsError, match="another writer"):
        store.create("d/m", b"another's")
    assert (store.read("d/m"), store.read("d/e/x", 1, 3)) == (b"mine", b"12")
    assert (store.read("d/e/x", 3, 9), store.read("d/e/x", 5, 9)) == (b"34", b"")
    assert store.names("d") == ["e", "m"]
    entries = store.entries("d")
    assert [(entry.name, entry.size_bytes) for entry in entries] == [("d/e/x", 5), ("d/m", 4)]
    assert all(abs(entry.modified - time.time()) < 300 for entry in entries)
    store.remove("d/m")
    store.remove("d/m")
    store.remove_folder("d/e")
    assert store.entries("d") == []
    with pytest.raises(FileNotFoundError):
        store.read("d/m")
    assert store.keeps_conditions() == each_store.kind.keeps_conditions
    assert store.entries("d") == []


def test_no_look_is_an_old_one(each_store: EachStore) -> None:
    """Another process replaces an object by one of another size, adds one and removes one."""
    store, d = ObjectStore(each_store.root), storage.join(each_store.root, "d")
    for name in ("x", "gone"):
        store.put(f"d/{name}", [b"short"])
    assert [entry.size_bytes for entry in store.entries("d")] == [5, 5]
    assert storage.names_in(d) == ["gone", "x"]
    assert len(storage.glob(storage.join(d, "*"))) == 2
    other, path = another_process(d)
    for content in (b"much longer", b"2"):
        other.pipe_file(f"{path}/x", content)
        assert store.read("d/x") == content
        assert storage.read_bytes(storage.join(d, "x")) == content
        with storage.open_file(storage.join(d, "x")) as file:
            assert file.read() == content
        assert storage.stamp(storage.join(d, "x")).size_bytes == len(content)
    other.pipe_file(f"{path}/new", b"1")
    other.rm_file(f"{path}/gone")
    assert store.names("d") == storage.names_in(d) == ["new", "x"]
    assert [entry.size_bytes for entry in store.entries("d")] == [1, 1]
    assert len(storage.glob(storage.join(d, "*"))) == 2
    assert not storage.exists(storage.join(d, "gone"))


@pytest.mark.parametrize(
    "left", [0, *(pytest.param(left, marks=pytest.mark.heavy) for left in (10, 3000))]
)
def test_a_truncated_object_is_damage(each_store: EachStore, left: int) -> None:
    store = ObjectStore(each_store.root, retry_seconds=5.0)
    for step in (5, 10):
        manifest = save(store, state_of(step), chunk_bytes=2**13)
    folder = f"objects/{manifest.attempt}"
    name = max((e for e in store.entries(folder)), key=lambda e: e.size_bytes).name
    other, path = another_process(storage.join(each_store.root, name))
    other.pipe_file(path, other.cat_file(path)[:left])
    state, said = state_of(0), list[str]()
    loaded = load_newest(store, state, said.append)
    assert (loaded.step, loaded.damaged) == (5, {NEWER})
    assert "damaged" in said[0]
    assert_holds(state, 5)


@pytest.mark.parametrize("each_store", ["sftp"], indirect=True)
def test_what_a_killed_writer_leaves_beside_manifests_goes_by_its_age(
    each_store: EachStore,
) -> None:
    store = ObjectStore(each_store.root)
    save(store, state_of(5), chunk_bytes=2**13)
    kept = store.names(MANIFESTS)
    other, path = another_process(storage.join(each_store.root, MANIFESTS))
    halves = [".old.0.01234567", ".new.0.01234567", ".nfs0old", "old"]
    for name in halves:
        other.pipe_file(f"{path}/{name}", b"half")
        if "old" in name:
            other.ftp.utime(f"{path}/{name}", (0.0, time.time() - 3700.0))
    Pruner(store, keeping(9, 0, 0, 1.0)).prune()
    assert store.names(MANIFESTS) == sorted([*halves[1:], *kept])


@pytest.mark.parametrize("each_store", ["s3-rclone", "webdav", "sftp"], indirect=True)
def test_of_a_packed_file_the_size_is_known(
    each_store: EachStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that holds much at its beginning would be taken for a bomb."""
    monkeypatch.setattr(bombs, "BOMB_BYTES", 2**17)
    content = bytes(2**19) + os.urandom(2**16)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "x.gz": gzip.compress, "x.zst": lambda text: bytes(pa.compress(text, "zstd", asbytes=True)),
    }  # fmt: skip
    for name, pack in packers.items():
        uri = storage.join(each_store.root, name)
        storage.write_bytes(uri, pack(content))
        with storage.open_file(uri) as packed:
            assert bombs.size_of(packed) == len(pack(content))
        with open_decompressed(uri) as file:
            assert file.read() == content
        storage.write_bytes(uri, pack(bytes(2**24)))
        with open_decompressed(uri) as file, pytest.raises(bombs.Bomb):
            file.read()


@pytest.mark.parametrize(
    "each_store",
    # On webdav and sftp it is a folder like any other, which is made.
    each_of(name for name in KINDS if name not in ("webdav", "sftp")),
    indirect=True,
)
def test_a_place_that_is_not_there_is_told_at_once(each_store: EachStore) -> None:
    nowhere = each_store.bucket.replace("bucket", "no-such-bucket") + "/run"
    for write in (
        lambda: storage.write_bytes(storage.join(nowhere, "x"), b"1"),
        lambda: ObjectStore(nowhere).put("x", [b"1"]),
        lambda: ObjectStore(nowhere).create("x", b"1"),
    ):
        started = time.monotonic()
        with pytest.raises(StorageError, match=nowhere) as caught:
            write()
        assert time.monotonic() - started < FINAL_SECONDS
        assert not isinstance(caught.value, StoreUnavailable)
        assert "\n" not in str(caught.value)
    assert ObjectStore(nowhere).names("x") == []
    with pytest.raises(FileNotFoundError):
        ObjectStore(nowhere).read("x")


@pytest.mark.parametrize(
    "each_store", each_of(name for name, kind in KINDS.items() if kind.forbids), indirect=True
)
def test_a_wrong_key_is_told_at_once(
    each_store: EachStore, capfd: pytest.CaptureFixture[str]
) -> None:
    with used(each_store.server.environment_with(WRONG)):
        for use in (
            lambda: storage.write_bytes(storage.join(each_store.root, "x"), b"1"),
            lambda: storage.read_bytes(storage.join(each_store.root, "x")),
            lambda: storage.exists(storage.join(each_store.root, "x")),
            lambda: ObjectStore(each_store.root).put("x", [b"1"]),
            lambda: ObjectStore(each_store.root).read("x"),
            lambda: ObjectStore(each_store.root).names("x"),
        ):
            started = time.monotonic()
            with pytest.raises(StorageError, match=each_store.bucket) as caught:
                use()
            assert time.monotonic() - started < FINAL_SECONDS
            assert not isinstance(caught.value, StoreUnavailable)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_store_that_is_away_is_waited_for_as_long_as_is_said(each_store: EachStore) -> None:
    store = ObjectStore(each_store.root, retry_seconds=1.0)
    store.put("x", [b"1"])
    each_store.server.kill()
    for call in (
        lambda: store.put("y", [b"1"]), lambda: store.read("x"), lambda: store.names("d"),
        lambda: store.entries("d"),
    ):  # fmt: skip
        started = time.monotonic()
        with pytest.raises(StorageError, match=each_store.root):
            call()
        # Azure's library alone would go on for over a minute, gcsfs for half a one.
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("each_store", ["webdav"], indirect=True)
@pytest.mark.parametrize("retries", [True, False])
def test_a_slow_answer_of_webdav_is_waited_for(each_store: EachStore, retries: bool) -> None:
    fs, _ = filesystem(each_store.root, retries=retries)
    limits = fs.client.http.timeout.as_dict()
    assert limits == {"connect": 10, "read": 60, "write": 60, "pool": 60}


def away_for(seconds: float, server: Server) -> threading.Timer:
    server.kill()
    back = threading.Timer(seconds, server.start)
    back.start()
    return back


@pytest.mark.parametrize("each_store", ["sftp"], indirect=True)
@pytest.mark.parametrize("method", ["cat_whole", "put_whole"])
def test_a_server_that_goes_and_comes_is_connected_to_again(
    each_store: EachStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    uri, original, goes = storage.join(each_store.root, "x"), getattr(calls, method), [1.0]
    backs: list[threading.Timer] = []

    def goes_within(*arguments: Any) -> Any:
        if goes:
            backs.append(away_for(goes.pop(), each_store.server))
        return original(*arguments)

    def use() -> None:
        if method == "cat_whole":
            assert storage.read_bytes(uri) == b"1"
        else:
            storage.write_bytes(uri, b"1")

    storage.write_bytes(uri, b"1")
    monkeypatch.setattr(calls, method, goes_within)
    use()
    assert len(backs) == 1
    for _ in ("lost before", "never there"):
        backs.append(away_for(1.0, each_store.server))
        use()
        forget_clients()
    backs.append(away_for(1.0, each_store.server))
    assert ObjectStore(each_store.root).names("d") == []
    for back in backs:
        back.join()


@pytest.mark.heavy
def test_of_two_writers_at_the_same_moment_one_is_told(each_store: EachStore) -> None:
    stores = [ObjectStore(each_store.root) for _ in range(2)]
    for store in stores:
        store.keeps_conditions()
    start = threading.Barrier(2)

    def write(number: int) -> list[bool]:
        written = []
        for turn in range(10):
            start.wait(60)
            try:
                stores[number].create(f"m/{turn}", f"writer {number}".encode())
            except FileExistsError:
                written.append(False)
            else:
                written.append(True)
        return written

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(write, range(2))
    for turn, mine in enumerate(first):
        assert mine != second[turn]
        assert stores[0].read(f"m/{turn}") == f"writer {0 if mine else 1}".encode()


@pytest.mark.heavy
def test_a_run_lives_on_each_store(each_store: EachStore, tmp_path: Path) -> None:
    config, run = tiny_config(tmp_path), storage.join(each_store.root, "run")

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dist_embed.cli.main", *arguments], capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    train = ("train", config, f"run.uri={run}")
    began = command(*train, "train.max_steps=4")
    assert "step 4/4" in began
    assert ("does not promise" in began) != each_store.kind.keeps_conditions
    assert "resuming from the checkpoint of step 4" in command(*train)
    assert "BLEU" in command("evaluate", run, "--workers", "1")
    vectors = storage.join(each_store.root, "vectors.txt")
    command("export", "embeddings", run, "--format", "word2vec", "--output", vectors)
    assert storage.read_bytes(vectors).count(b"\n") > 20
    assert "step" in command("checkpoint", "verify", run)

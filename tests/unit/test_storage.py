from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import multiprocessing
import os
import pickle
import resource
import shutil
import socket
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from traceback import format_exception
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from dist_embed.arguments import begins
from dist_embed.checkpoint.manifest import CheckpointLate
from dist_embed.cli.main import _code_of
from dist_embed.data.proof import copy_proven
from dist_embed.data.scratch import write_scratch
from dist_embed.data.word_table import write_words
from dist_embed.errors import NotWritable, StorageError, StoreUnavailable, UserError
from dist_embed.observe.quiet import open_log
from dist_embed.passwords import masked, password_in
from dist_embed.storage import bombs, calls, clients, retry
from dist_embed.storage import uri as storage
from dist_embed.storage.bombs import Bomb
from dist_embed.storage.clients import filesystem
from dist_embed.storage.compressed import (
    OPEN_ERRORS,
    READ_ERRORS,
    is_compressed,
    name_of,
    open_decompressed,
)
from dist_embed.storage.objects import ObjectStore
from dist_embed.storage.trials import check_writable
from tests.unit.full_disk import full_disk


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh folder on each kind of store."""
    return {
        "local": str(tmp_path),
        "file": f"file://{tmp_path}",
        "memory": f"memory://storage-{uuid.uuid4().hex}",
    }[request.param]


def test_what_is_written_is_read(folder: str) -> None:
    uri = storage.join(folder, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"0123456789"
    storage.write_text(uri, "grün")
    assert storage.read_text(uri) == "grün"
    assert storage.read_bytes(uri) == "grün".encode()


@pytest.mark.parametrize("folder", ["{tmp}/a[1]", "memory://names[1]"])
def test_names_in_a_folder(tmp_path: Path, folder: str) -> None:
    uri = folder.format(tmp=tmp_path)
    assert storage.names_in(uri) == []
    for name in ("b", "a*", "c/d"):
        storage.write_text(storage.join(uri, name), "x")
    assert storage.names_in(uri) == ["a*", "b", "c"]


def test_a_file_system_that_takes_no_kind_of_cache_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"text")
    with storage.open_file(f"blockcache::file://{tmp_path}/x", read_ahead=False) as file:
        assert file.read() == b"text"


def test_an_open_file_is_read_in_pieces(folder: str) -> None:
    uri = storage.join(folder, "new", "pieces.txt")
    storage.write_bytes(uri, b"one two")
    with storage.open_file(uri) as file:
        assert [file.read(4), file.read()] == [b"one ", b"two"]


def test_glob_gives_uris_that_can_be_read(folder: str) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        storage.write_text(storage.join(folder, name), name)
    found = storage.glob(storage.join(folder, "*.txt"))
    assert [storage.read_text(uri) for uri in found] == ["a.txt", "b.txt"]
    assert storage.glob(storage.join(folder, "*.csv")) == []
    assert storage.glob(storage.join(folder, "new.txt")) == [storage.join(folder, "new.txt")]


def test_remove_takes_files_folders_and_nothing(folder: str) -> None:
    storage.write_text(storage.join(folder, "d", "sub", "x"), "x")
    storage.write_text(storage.join(folder, "y"), "y")
    storage.remove(storage.join(folder, "d"))
    storage.remove(storage.join(folder, "never-was"))
    assert not storage.exists(storage.join(folder, "d", "sub", "x"))
    storage.remove(storage.join(folder, "y"))
    assert not storage.exists(storage.join(folder, "y"))


def test_missing_files_are_told_apart(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "missing"))


def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"old")

    def disk_full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(uri, b"new and longer")
    monkeypatch.undo()
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["x"]


def write_more_than_allowed(path: str, writer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        storage.write_bytes(path, b"x" * 100_000)
    except OSError as exc:
        writer.send(str(exc))


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    process = fork.Process(target=write_more_than_allowed, args=(str(path), writer))
    process.start()
    process.join()
    assert reader.recv() == f"[Errno {errno.EFBIG}] File too large: {str(path)!r}"
    with full_disk(), pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        storage.write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_output_goes_to_a_new_file_or_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"new", b"newer"):
        with storage.output_file(str(path)) as file:
            file.write(content)
        assert path.read_bytes() == content
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):  # noqa: SIM117
        with storage.output_file("/dev/full") as file:
            file.write(b"x")
    assert Path("/dev/full").is_char_device()


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "null", "folder"):
        with (
            pytest.raises(OSError, match=f"not a regular file.*{name}"),
            storage.whole_file(str(tmp_path / name)),
        ):
            pass
    assert sorted(os.listdir(tmp_path)) == ["folder", "null", "pipe"]


def test_a_url_has_one_name() -> None:
    assert storage.absolute("s3://bucket/run/") == storage.absolute("s3://bucket/run")
    assert storage.absolute("memory://") == "memory://"


def test_open_reader_keeps_the_old_content(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"old")
    with storage.open_file(uri) as reader:
        storage.write_bytes(uri, b"new")
        assert reader.read() == b"old"
    assert storage.read_bytes(uri) == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_what_is_written_is_the_umasks_to_say(
    tmp_path: Path, umask: int, mode: int
) -> None:
    earlier = os.umask(umask)
    try:
        storage.write_bytes(str(tmp_path / "x"), b"")
        store = ObjectStore(str(tmp_path / "store"))
        store.put("put", [b"1"])
        store.create("created", b"2")
        os.close(open_log(tmp_path / "log"))
    finally:
        os.umask(earlier)
    for name in ("x", "store/put", "store/created", "log"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for mode in (0o600, 0o666, 0o400):
        path.touch()
        path.chmod(mode)
        with storage.whole_file(str(path)) as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == mode  # not wider meanwhile either
        assert path.stat().st_mode & 0o777 == mode


def test_a_link_goes_on_leading_to_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "links").mkdir()
    links = {"to-a-file": "../there", "to-nothing": "../new", "twice": "to-a-file"}
    for name, target in links.items():
        link = tmp_path / "links" / name
        link.symlink_to(target)
        storage.write_given_text(str(link), name)
        assert os.readlink(link) == target
        assert link.read_text() == name
    assert (tmp_path / "there").read_text() == "twice"
    assert (tmp_path / "new").read_text() == "to-nothing"
    assert sorted(os.listdir(tmp_path)) == ["links", "new", "there"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match=f"symbolic links.*'{tmp_path}/round'"):
        storage.write_given_text(str(tmp_path / "round"), "x")
    assert (tmp_path / "round").is_symlink()


def test_a_link_in_place_of_a_file_of_our_own_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"secret")
    (tmp_path / "run").mkdir()
    for name, target in {"file": "../victim", "nothing": "../new", "round": "round"}.items():
        link = tmp_path / "run" / name
        link.symlink_to(target)
        storage.write_bytes(str(link), b"ours")
        assert not link.is_symlink()
        assert link.read_bytes() == b"ours"
    copy_proven(str(tmp_path / "run/file"), str(tmp_path / "run/copy"), None, "")
    assert (tmp_path / "victim").read_bytes() == b"secret"
    assert sorted(os.listdir(tmp_path)) == ["run", "victim"]


def test_nothing_but_a_regular_file_is_read(tmp_path: Path) -> None:
    """A named pipe would be waited for, a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    reads: list[Callable[[str], object]] = [
        storage.read_bytes, storage.sha256_of, storage.open_file,
        lambda uri: storage.read_range(uri, 0, 5),
    ]  # fmt: skip
    for name in ("pipe", "zero", "socket"):
        for read in reads:
            with pytest.raises(OSError, match=f"not a regular file: '{tmp_path}/{name}'"):
                read(str(tmp_path / name))
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        storage.read_bytes(str(tmp_path))


def test_a_file_that_a_user_has_named_may_be_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as other:
        other.submit((tmp_path / "pipe").write_text, "Grüße")
        assert storage.read_given_text(str(tmp_path / "pipe")) == "Grüße"


def test_a_write_that_has_no_room_names_the_file(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    path, much = tmp_path / "file", b"x" * 1000
    store = ObjectStore(str(tmp_path))
    writes: list[Callable[[], object]] = [
        lambda: storage.write_bytes(str(path), much),
        lambda: write_scratch(str(path), much),
        lambda: store.put("file", [much]),
        lambda: store.create("file", much),
        lambda: write_words(str(path), pa.array(["a" * 1000], pa.large_string())),
    ]  # fmt: skip
    for write in writes:
        path.unlink(missing_ok=True)
        with pytest.raises(OSError, match=f"File too large: '{path}'"), full_disk():
            write()


def test_a_file_on_its_way_to_a_store_that_has_no_room_is_named(
    full_disk: Callable[[], AbstractContextManager[None]],
) -> None:
    def export() -> None:
        with storage.whole_file("memory://room/x") as file, full_disk():
            file.write(b"x" * 1000)
            file.flush()

    with pytest.raises(OSError, match=r"File too large: '.*/dist_embed-file-.*/whole'"):
        export()


def test_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match=r"cannot open 'nope://x'.*nope"):
        filesystem("nope://x")


def test_local_uris_are_known() -> None:
    assert storage.is_local("runs/a")
    assert storage.is_local("file:///tmp/a")
    assert not storage.is_local("memory://a")
    assert storage.local_path("file:///tmp/a") == Path("/tmp/a")


@pytest.mark.parametrize(
    ("uri", "joined"),
    [("a", "a/x/y"), ("a/", "a/x/y"), ("/tmp/", "/tmp/x/y"), ("s3://b", "s3://b/x/y"),
     ("s3://b/k/", "s3://b/k/x/y")],
)  # fmt: skip
def test_join_adds_one_slash(uri: str, joined: str) -> None:
    assert storage.join(uri, "x", "y") == joined


def test_join_keeps_a_bare_protocol() -> None:
    assert storage.join("memory://", "x") == "memory://x"


def test_a_server_of_s3_is_asked_for_what_all_of_them_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def open_store(uri: str, **options: Any) -> tuple[Any, str]:
        asked.append(options)
        return SimpleNamespace(retries=5), "path"

    monkeypatch.setattr(clients, "url_to_fs", open_store)
    for protocol in ("s3", "s3a"):
        fs, _ = filesystem(f"{protocol}://bucket/x")
        once, _ = filesystem(f"{protocol}://bucket/x", retries=False)
        # Who repeats calls does so alone: no attempt of the client stretches the limit of time.
        assert (fs.retries, once.retries) == (5, 1)
        usual, single = (options[protocol]["config_kwargs"] for options in asked)
        assert single.pop("retries") == {"total_max_attempts": 1}
        assert single == usual
        # Servers lack these checksums, or get them wrong.
        assert usual["request_checksum_calculation"] == "when_required"
        assert usual["response_checksum_validation"] == "when_required"
        asked.clear()
    for retries in (True, False):
        filesystem("memory://bucket/x", retries=retries)
    assert asked == [{}, {}]


def test_a_file_that_takes_many_requests_is_put_by_a_client_that_repeats_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def noted(uri: str, retries: bool = True) -> Any:
        asked.append(retries)
        return filesystem(uri, retries=retries)

    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "filesystem", noted)
    with storage.whole_file("memory://parts/x") as file:
        file.write(b"much")
    storage.write_bytes("memory://parts/y", b"little")
    assert asked == [True, False]


@pytest.mark.parametrize(
    ("uri", "protocol"), [("s3://b/x", "s3"), ("blockcache::s3a://b/x", "s3a")]
)  # fmt: skip
def test_no_client_keeps_listings(monkeypatch: pytest.MonkeyPatch, uri: str, protocol: str) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        clients, "url_to_fs", lambda uri, **options: (asked.append(options), "path")
    )
    filesystem(uri)
    assert asked[0][protocol]["use_listings_cache"] is False


@pytest.mark.parametrize(
    ("uri", "shown"),
    [("sftp://me:secret@host/run", "sftp://me:***@host/run"),
     ("simplecache::https://me:s%40crt@host:80/x", "simplecache::https://me:***@host:80/x"),
     ("sftp://me:p@ss@host/x", "sftp://me:***@host/x"),
     ("sftp://me:p/ss@host/x", "sftp://me:***@host/x"),
     ("sftp://me:p@s/s@host/x", "sftp://me:***@host/x"),
     ("sftp://me:p ss@host/x", "sftp://me:***@host/x"),
     ("sftp://me:1234@host:22/x", "sftp://me:***@host:22/x"),
     ("sftp://me@there:secret@host/x", "sftp://me@there:***@host/x"),
     ("zip://f::https://me:s3/cret@host/x", "zip://f::https://me:***@host/x"),
     ("zip://a:b::sftp://me:s3/cret@host/x", "zip://a:b::sftp://me:***@host/x")],
)  # fmt: skip
def test_a_url_with_a_password_is_refused_and_not_shown(uri: str, shown: str) -> None:
    with pytest.raises(StorageError) as caught:
        filesystem(uri)
    assert str(caught.value).startswith(f"{shown!r} is not allowed: a password in a URL")
    assert "FSSPEC_SFTP_PASSWORD" in str(caught.value)
    assert masked(f"cannot read {uri}: no") == f"cannot read {shown}: no"


@pytest.mark.parametrize(
    "uri",
    ["abfss://container@account.dfs.core.windows.net/x", "http://host:80/a@b", "a:b@c", "s3://b",
     "s3://bucket/a@b", "s3://bucket/a:b@c", "host:8080/x@y", "sftp://me@host:22/x@y",
     "http://[fe80::1]:8080/x@y", "sftp://me@[::1]/x@y", "zip://a.txt::s3://b/c@d",
     "s3://arn:aws:s3:us-east-1:123:accesspoint/x/a@b", "file:///a:b@c", "http://host:80: a@b",
     "'http://host:80', a@b", "s3://bucket: a@b", "http://host/?a=b&signal=c",
     "github://org:repo@main/x", "git://repo:main@x", "https://host?x=a:b@c", "https://host#a:b@c",
     "zip://a:b::abfs://container@account/x.zip"],
)  # fmt: skip
def test_what_is_no_password_is_let_be(uri: str) -> None:
    assert masked(uri) == uri
    assert password_in(uri) is None


@pytest.mark.parametrize(
    "name", ["sig", "X-Amz-Signature", "X-Goog-Signature", "Signature", "token", "access_token",
             "X-Amz-Security-Token"]
)  # fmt: skip
def test_a_signature_in_a_url_is_not_shown(name: str) -> None:
    signed = f"https://host/x?sv=1&{name}=s3%2Bcret&se=2"
    assert masked(f"no {signed}") == f"no https://host/x?sv=1&{name}=***&se=2"
    assert masked(f"{{'https://host/x?{name}=s3cret'}}") == f"{{'https://host/x?{name}=***'}}"


def test_a_password_of_any_length_is_hidden() -> None:
    """Tokens have thousands of characters; for its `@` no text is searched so far."""
    assert masked("sftp://me:" + 1999 * "x" + "@host, a") == "sftp://me:***@host, a"
    assert masked("sftp://me:" + 9000 * "x" + "@host, a") == "sftp://me:***@ a"
    assert password_in("sftp://me:" + 9000 * "x" + "@host/a")


def test_an_error_holds_no_password_in_whatever_form() -> None:
    for kind in (UserError, CheckpointLate):
        error = kind("cannot read sftp://me:s3cret@host/x")
        for one in (error, pickle.loads(pickle.dumps(error))):
            assert type(one) is kind
            assert str(one) == "cannot read sftp://me:***@host/x"
            assert "s3cret" not in repr(one) + str(one.args) + "".join(format_exception(one))
    long = "sftp://me:" + "s3cret" * 100 + "@host/x"
    assert begins(f"x={long}", 40) == "x=sftp://me:***@host/x"


@pytest.mark.parametrize(
    ("info", "stamp"),
    [({"size": 5, "mtime": 3, "created": 9.0}, storage.Stamp(5, 3.0)),
     ({"size": 0, "LastModified": datetime(1970, 1, 2, tzinfo=timezone.utc), "ETag": "a"},
      storage.Stamp(0, 86400.0)),
     ({"size": None, "created": None, "ETag": '"a"'}, storage.Stamp(None, '"a"')),
     ({"Last-Modified": "Fri, 02 Jan 1970 00:00:00 GMT"}, storage.Stamp(None, 86400.0)),
     ({"Last-Modified": "yesterday"}, storage.Stamp(None, "yesterday")),
     ({"updated": "1970-01-02T00:00:00.000Z"}, storage.Stamp(None, 86400.0)),
     ({"size": 1, "modified": datetime(1970, 1, 2, tzinfo=timezone.utc)},
      storage.Stamp(1, 86400.0)),
     ({"size": "7"}, storage.Stamp(7, None))],
)  # fmt: skip
def test_a_file_s_time_is_the_best_that_its_store_gives(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], stamp: storage.Stamp
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "info", lambda fs, path: info)
    assert storage.stamp("memory://stamps/x") == stamp


LOOKS: dict[str, Callable[[str], object]] = {
    "exists": storage.exists, "info": storage.stamp, "ls": storage.names_in,
    "rm": storage.remove, "cat_file": storage.read_bytes, "open": storage.sha256_of,
    "pipe_file": lambda uri: storage.write_bytes(uri, b"1"),
}  # fmt: skip


@pytest.mark.parametrize("method", [name for name in LOOKS if name != "rm"])
def test_a_call_of_a_store_is_repeated_and_one_of_a_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    failing: list[OSError] = []
    for kind in (MemoryFileSystem, LocalFileSystem):
        original = getattr(kind, method)

        def call(*args: Any, _original: Any = original, **more: Any) -> Any:
            if failing:
                raise failing.pop()
            return _original(*args, **more)

        monkeypatch.setattr(kind, method, call)
    uri = f"memory://repeated/{method}"
    storage.write_bytes(uri, b"1")
    failing[:] = [OSError(errno.EBUSY, "busy")] * 2
    LOOKS[method](uri)
    assert failing == []
    if method not in (
        "cat_file",
        "pipe_file",
        "open",
    ):  # a local file goes other ways
        (tmp_path / "x").write_bytes(b"1")
        failing[:] = [OSError(errno.EIO, "bad block")]
        with pytest.raises(OSError, match="bad block"):
            LOOKS[method](str(tmp_path / "x"))


@pytest.mark.parametrize("method", ["exists", "info", "ls", "rm"])
def test_no_look_is_an_old_one(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A client such as s3fs keeps listings; what another process has written is to be seen."""
    order: list[str] = []
    for name in (method, "invalidate_cache"):
        original = getattr(MemoryFileSystem, name)

        def call(*args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            order.append(_name)
            return _original(*args, **more)

        monkeypatch.setattr(MemoryFileSystem, name, call)
    storage.write_bytes("memory://looks/x", b"1")
    order.clear()
    LOOKS[method]("memory://looks" if method == "ls" else "memory://looks/x")
    assert order[:2] == ["invalidate_cache", method]


def test_a_store_reads_no_more_than_is_asked_for_where_it_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    original = MemoryFileSystem.open

    def opened(*args: Any, **more: Any) -> Any:
        given.append(more)
        return original(*args, **more)

    storage.write_bytes("memory://ahead/x", b"text")
    monkeypatch.setattr(MemoryFileSystem, "open", opened)
    for read_ahead in (True, False):
        with storage.open_file("memory://ahead/x", read_ahead=read_ahead) as file:
            assert file.read() == b"text"
    assert given == [{}, {"cache_type": "none"}]


class Disk(AbstractFileSystem):
    """A server's disk, as of sftp: files are opened, and lie in folders. It may be full."""

    protocol = "disk"
    files: ClassVar[dict[str, bytes]] = {}
    folders: ClassVar[set[str]] = set()
    full = False

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if path.rpartition("/")[0] not in self.folders:
            raise FileNotFoundError(path)
        if "r" in mode:
            return io.BytesIO(self.files[path])
        self.files[path] = b""  # as by O_TRUNC
        return WrittenToDisk(self, path)

    def exists(self, path: str, **options: Any) -> bool:
        return path in self.folders or path in self.files

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.folders.add(path)

    def mv(self, old: str, new: str, **options: Any) -> None:
        self.files[new] = self.files.pop(old)

    def rm_file(self, path: str) -> None:
        del self.files[path]


class WrittenToDisk(io.BytesIO):
    def __init__(self, disk: Disk, path: str) -> None:
        super().__init__()
        self._disk, self._path = disk, path

    def write(self, data: Any) -> int:
        self._disk.files[self._path] += bytes(data)[: 2 if self._disk.full else None]
        if self._disk.full:
            raise PermissionError(errno.EACCES, "no room")
        return len(data)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_whole_file_of_a_store_appears_when_its_block_has_ended_well(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fsspec.register_implementation("disk", Disk, clobber=True)
    uri = f"{kind}://whole-{uuid.uuid4().hex}/new/x"
    for content in (b"good", b"better"):
        with storage.whole_file(uri) as file:
            file.write(content)
            os.fstat(file.fileno())
        assert storage.read_bytes(uri) == content

    def refuse() -> None:
        with storage.whole_file(uri) as file:
            file.write(b"half")
            file.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refuse()
    assert storage.read_bytes(uri) == b"better"
    if kind == "disk":
        monkeypatch.setattr(Disk, "full", True)
        for write in (
            lambda: storage.write_bytes(uri, b"half"),
            lambda: ObjectStore(uri[:-1]).put("x", [b"half"]),
        ):
            with pytest.raises(StorageError, match="no room"):
                write()
            assert storage.read_bytes(uri) == b"better"
        assert (
            len([name for name in Disk.files if name.startswith(uri[len("disk://") :][:20])]) == 1
        )


def test_what_a_killed_writer_leaves_is_known_from_files_of_others() -> None:
    left: list[str] = []
    with pytest.raises(KeyError):
        calls.put_whole(Disk(), "folder/x", left.append)  # which writes nothing
    assert calls.is_half(left[0])
    for name in ("x", ".htaccess", ".nfs00000000012ab3cd00000001", ".x.swp", "x.01234567"):
        assert not calls.is_half(f"folder/.x.01234567/{name}")


def test_a_local_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, found in (
        ("runs/x/", f"{tmp_path}/runs/x"), ("../x", f"{tmp_path.parent}/x"),
        ("~/x", "/home/me/x"), ("/x/y/", "/x/y"), ("file:///x/", "file:///x"),
    ):  # fmt: skip
        assert storage.absolute(given) == found


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    uri = str(tmp_path / "a" / "b" / "x")
    storage.write_bytes(uri, b"1")
    assert storage.read_bytes(uri) == b"1"
    assert storage.sha256_of(uri)
    with pytest.raises(ZeroDivisionError), storage.whole_file(uri):
        raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before


def as_zip(content: bytes, names: tuple[str, ...] = ("folder/", "folder/x")) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else content)
    return buffer.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "x.gz": gzip.compress, "x.bz2": bz2.compress, "x.xz": lzma.compress, "x.zip": as_zip,
    "x.zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*PACKED, "x.txt", "gz", "x.gz.txt"])
def test_a_file_is_decompressed_by_its_ending(folder: str, name: str) -> None:
    content = b"some text\n" * 9000
    stored = PACKED[name](content) if name in PACKED else content
    uri = storage.join(folder, name)
    storage.write_bytes(uri, stored)
    assert is_compressed(uri) is (name in PACKED)
    with open_decompressed(uri) as file:
        assert file.read(4) + file.read() == content
    plain = storage.join(folder, "plain")
    storage.write_bytes(plain, stored)
    with open_decompressed(plain, Path(name).suffix if name in PACKED else "") as file:
        assert file.read() == content


@pytest.mark.parametrize("names", [(), ("folder/",), ("a", "b")])
def test_an_archive_of_any_number_of_files_but_one_is_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    (tmp_path / "x.zip").write_bytes(as_zip(b"1", names))
    number = sum(not name.endswith("/") for name in names)
    with pytest.raises(
        ValueError, match=f"{number} files in it; name one, as zip://NAME::/.*x.zip, or unpack it"
    ):
        open_decompressed(str(tmp_path / "x.zip"))


@pytest.mark.parametrize("name", PACKED)
def test_a_compressed_file_that_was_cut_is_an_error(tmp_path: Path, name: str) -> None:
    stored = PACKED[name](os.urandom(9000))
    (tmp_path / name).write_bytes(stored[: len(stored) // 2])
    with pytest.raises((*OPEN_ERRORS, *READ_ERRORS)):
        open_decompressed(str(tmp_path / name)).read()


def test_where_nothing_can_be_written_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (f"{tmp_path}/a/b", "memory://trials"):
        check_writable(folder, "run.uri")
        assert storage.names_in(folder) == []
    with pytest.raises(UserError, match=r"^run\.uri: '/proc/none' is not allowed: nothing can"):
        check_writable("/proc/none", "run.uri")

    def refuse(*_: Any, **more: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "rm", refuse)
    check_writable("memory://trials", "run.uri")  # that is no reason
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    denied = r"^run\.uri: 'memory://trials' .*: Access Denied$"
    with pytest.raises(NotWritable, match=denied) as told:
        check_writable("memory://trials", "run.uri")
    assert _code_of(told.value) == 1  # as on a disk

    def nowhere(*_: Any, **more: Any) -> None:
        raise FileNotFoundError("bucket")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", nowhere)
    with pytest.raises(UserError, match=r"no such bucket") as absent:
        check_writable("memory://trials", "run.uri")
    assert _code_of(absent.value) == 2


class FarFile(AbstractBufferedFile):
    """As of S3 or GCS: read by ranges, of which the last is kept."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return FarStore.content[start:end]

    def readuntil(self, *arguments: Any, **how: Any) -> bytes:
        raise AssertionError("a line costs a block")


class FarStore(AbstractFileSystem):
    content = b""

    def _open(self, path: str, mode: str = "rb", **how: Any) -> FarFile:
        return FarFile(self, path, mode, size=len(self.content), block_size=1000)


@pytest.mark.parametrize(("ending", "packed"), [("", bytes), (".gz", gzip.compress)])
def test_lines_of_a_far_file_do_not_cost_a_block_each(
    monkeypatch: pytest.MonkeyPatch, ending: str, packed: Callable[[bytes], bytes]
) -> None:
    lines = [b"%d\n" % number for number in range(5000)]
    monkeypatch.setattr(FarStore, "content", packed(b"".join(lines)))
    monkeypatch.setattr(storage, "filesystem", lambda uri, **_: (FarStore(), uri))
    with open_decompressed(f"far{ending}") as file:
        assert list(file) == lines


def test_a_signed_link_is_known_by_the_ending_of_its_path() -> None:
    assert is_compressed("https://h/x.tsv.GZ?X-Amz-Signature=a.b")
    assert not is_compressed("https://h/x.tsv?of=x.gz")
    assert is_compressed("zip://x.gz::https://h/x.zip?sig=a")
    assert is_compressed("s3://b/what?.gz")


def test_a_link_that_asks_for_a_file_is_known_by_the_ending_of_what_it_asks_for() -> None:
    assert is_compressed("https://opus/download.php?f=Europarl/v8/moses/de-en.TXT.zip")
    assert name_of("https://h/get?file=x.jsonl") == "https://h/get?file=x.jsonl"
    assert name_of("https://h/x.parquet?sig=a.gz") == "https://h/x.parquet"


class Unsized(io.BytesIO):
    """As of HTTP without a length: it cannot tell where it ends."""

    def seek(self, place: int, whence: int = 0) -> int:
        raise ValueError("Cannot seek streaming HTTP file")


class Speechless(io.BytesIO):
    """As paramiko's."""

    def seek(self, place: int, whence: int = 0) -> int:
        super().seek(place, whence)
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [Unsized, Speechless])
@pytest.mark.parametrize("name", [name for name in PACKED if not name.endswith(".zip")])
def test_of_a_file_of_unknown_size_no_more_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, kind: type[io.BytesIO], name: str
) -> None:
    monkeypatch.setattr(bombs, "BOMB_BYTES", 2**14)
    assert bombs.size_of(kind(b"123")) == (None if kind is Unsized else 3)
    content = os.urandom(2**15)
    monkeypatch.setattr(storage, "open_file", lambda uri, **_: kind(PACKED[name](content)))
    with open_decompressed(name) as file:
        assert file.read() == content
    content = bytes(2**20)
    with open_decompressed(name) as file, pytest.raises(Bomb, match=r"more than 200 times its"):
        file.read()


def test_a_key_that_is_not_there_is_no_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would be told as that there is no run, or no data."""

    def without_key(uri: str, **options: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/key")

    monkeypatch.setattr(clients, "url_to_fs", without_key)
    with pytest.raises(StorageError, match=r"cannot open 'sftp://h/x': .*/nowhere/key"):
        storage.filesystem("sftp://h/x")
    with pytest.raises(FileNotFoundError):
        storage.filesystem("zip://x::gone.zip")


@pytest.mark.parametrize(
    ("place", "kind"), [("sftp://h/a.tar", StoreUnavailable), ("file:///a.tar", StorageError)]
)
def test_a_server_that_goes_is_no_damaged_archive(
    monkeypatch: pytest.MonkeyPatch, place: str, kind: type[Exception]
) -> None:
    def ended(uri: str, **options: Any) -> None:
        raise EOFError

    monkeypatch.setattr(clients, "url_to_fs", ended)
    with pytest.raises(StorageError, match="cannot open 'tar://x::") as caught:
        storage.filesystem(f"tar://x::{place}")
    assert type(caught.value) is kind


@pytest.mark.parametrize("name", ["cut.zip", "cut.tgz", "cut.tar", "text.zip", "text.tgz", "0.tar"])
def test_an_archive_that_is_none_is_told_at_once(tmp_path: Path, name: str) -> None:
    ending = name.partition(".")[2]
    kind, here = {"tgz": "gztar"}.get(ending, ending), Path(__file__)
    whole = shutil.make_archive(str(tmp_path / "whole"), kind, str(here.parent), here.name)
    kinds = {"cut": Path(whole).read_bytes()[:3000], "text": b"text", "0": b""}
    path = tmp_path / name
    path.write_bytes(kinds[name.partition(".")[0]])
    inside = f"{'zip' if ending == 'zip' else 'tar'}://x.txt::{path}"
    for ask in (storage.exists, storage.read_bytes, storage.open_file):
        with pytest.raises(StorageError, match=f"cannot open .*{name}") as caught:
            ask(inside)
        assert not isinstance(caught.value, StoreUnavailable)


def test_an_address_that_is_none_is_told_at_once() -> None:
    with pytest.raises(StorageError, match="cannot open 'http://"):
        storage.exists("http://[::1/x")


@pytest.mark.parametrize("uri", ["data:,x", "data://x"])
def test_what_a_client_cannot_do_is_told_in_a_line(uri: str) -> None:
    for ask in (storage.exists, storage.stamp, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(StorageError, match=f"cannot (look at|write) {uri}: ") as caught:
            ask(uri)
        assert not isinstance(caught.value, StoreUnavailable)


def test_an_error_of_ours_is_not_taken_for_a_client_s() -> None:
    def wrong() -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        retry.retried("read", "x", wrong)


def test_a_file_in_an_archive_of_s3_is_opened_with_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def noted(uri: str, **options: Any) -> tuple[FarStore, str]:
        asked.append(options)
        return FarStore(), uri

    monkeypatch.setattr(clients, "url_to_fs", noted)
    for uri in ("s3://b/v.txt", "zip://v.txt::s3://b/v.zip", "tar://v.txt::v.tgz", "zip://a::b"):
        storage.filesystem(uri)
    plain, chained, tar, local = asked
    assert chained == plain
    assert set(plain["s3"]) == {"config_kwargs", "use_listings_cache"}
    assert (tar, local) == ({"tar": {"compression": "gzip"}}, {})
    assert storage.archive_of("a::b") == "a::b"  # a path

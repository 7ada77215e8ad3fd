"""The proxy does to requests what its faults say, and nothing else."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import s3fs
from aiohttp import ClientPayloadError
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]

from tests.stores.fault_proxy import Fault, FaultProxy, Request
from tests.stores.s3_server import FORGETS_SECONDS, MotoServer, S3Server, connect

DATA = bytes(range(256)) * 4000
# aiohttp itself repeats, once, a GET, HEAD, PUT or DELETE whose connection breaks.
TWICE = 2


@pytest.fixture(scope="module")
def shared_proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.url) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: FaultProxy, s3_root: str) -> FaultProxy:
    shared_proxy.clear()
    return shared_proxy


@pytest.fixture(scope="module")
def store(shared_proxy: FaultProxy) -> s3fs.S3FileSystem:
    """A client behind the proxy that does not try again."""
    return connect(shared_proxy.url)


@pytest.fixture
def key(s3_root: str) -> str:
    """An object that is not there yet."""
    return s3_root.removeprefix("s3://") + "/object"


@pytest.fixture
def file(s3: S3Server, key: str) -> Path:
    """The file of the object ``key``."""
    return s3.folder("bucket") / key.removeprefix("bucket/")


@pytest.fixture
def stored(file: Path) -> Path:
    """The same, with DATA in it."""
    file.parent.mkdir()
    file.write_bytes(DATA)
    return file


@pytest.mark.parametrize("server", ["s3", "moto"])
def test_without_faults_everything_passes(
    server: str, key: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    upstream: S3Server | MotoServer = request.getfixturevalue(server)
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(DATA * 20)
    with FaultProxy(upstream.url) as proxy:
        store = connect(proxy.url)
        store.put_file(str(local), key)
        store.get_file(key, str(back))
        assert back.read_bytes() == DATA * 20
        assert store.cat_file(key, start=1_000_001, end=1_000_300) == (DATA * 2)[1_000_001:][:299]
        # Several parts: their numbers and the upload's name are in the query.
        store.pipe_file(key, DATA * 12, chunksize=5 * 2**20)
        assert store.info(key)["size"] == 12 * len(DATA)
        store.rm_file(key)
        assert not store.exists(key)
        served = proxy.requests
        assert ("PUT", f"/{key}", 200) in served
        assert sum(method == "PUT" and "partNumber=" in path for method, path, _ in served) == 3


def test_a_chunked_upload_passes(moto: MotoServer) -> None:
    """Not from s3fs: some clients send what they do not know the length of."""
    with FaultProxy(moto.url) as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
        for name in ("one", "two"):  # on the same connection
            pieces = iter([DATA, name.encode()])
            connection.request("PUT", f"/bucket/{name}", pieces, encode_chunked=True)
            assert connection.getresponse().read() == b""
        connection.close()
        assert [status for *_, status in proxy.requests] == [200, 200]
    assert connect(moto.url).cat_file("bucket/two") == DATA + b"two"


def test_one_of_the_two_servers_refuses_to_overwrite(
    s3: S3Server, moto: MotoServer, key: str
) -> None:
    """What `If-None-Match` asks for; a test of it on rclone would test nothing."""
    for server in (s3, moto):
        connect(server.url).pipe_file(key, b"first", mode="create")
    connect(s3.url).pipe_file(key, b"second", mode="create")
    with pytest.raises(FileExistsError):
        connect(moto.url).pipe_file(key, b"second", mode="create")
    assert connect(moto.url).cat_file(key) == b"first"


def test_it_replies_with_an_error_as_often_as_told(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, file: Path
) -> None:
    fault = proxy.add(Fault("PUT", r"/object$", status=503, after=1, times=2))
    store.pipe_file(key, b"first")
    for _ in range(2):
        with pytest.raises(OSError, match="injected"):
            store.pipe_file(key, DATA)
    assert file.read_bytes() == b"first"
    store.pipe_file(key, DATA)
    assert file.read_bytes() == DATA
    assert [status for *_, status in proxy.requests] == [200, 503, 503, 200]
    assert fault.hits == 2


def test_a_fault_lasts_until_it_is_removed(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, stored: Path
) -> None:
    fault = proxy.add(Fault("GET", status=503, times=None))
    for _ in range(3):
        with pytest.raises(OSError, match="injected"):
            store.cat_file(key, start=0, end=9)
    proxy.remove(fault)
    assert store.cat_file(key, start=0, end=9) == DATA[:9]


def test_a_dropped_reply_leaves_the_object_on_the_server(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, file: Path
) -> None:
    proxy.add(Fault("PUT", drop_reply=True, times=TWICE))
    with pytest.raises(EndpointConnectionError):
        store.pipe_file(key, DATA)
    assert file.read_bytes() == DATA
    assert proxy.requests == [("PUT", f"/{key}", 0)] * TWICE


def test_one_broken_connection_goes_unnoticed(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, file: Path
) -> None:
    """Which is why the tests here break two; the server sees both requests."""
    proxy.add(Fault("PUT", drop_reply=True))
    store.pipe_file(key, DATA)
    assert file.read_bytes() == DATA
    assert [status for *_, status in proxy.requests] == [0, 200]


def test_a_reset_upload_leaves_no_object(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, file: Path
) -> None:
    proxy.add(Fault("PUT", reset_upload=100_000, times=TWICE))
    with pytest.raises(EndpointConnectionError):
        store.pipe_file(key, DATA)
    assert not file.exists()
    store.pipe_file(key, DATA)
    assert file.read_bytes() == DATA


def test_a_truncated_reply_ends_early(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, stored: Path
) -> None:
    proxy.add(Fault("GET", truncate_reply=500_000))
    with pytest.raises(ClientPayloadError):
        store.cat_file(key, start=0, end=len(DATA))
    assert store.cat_file(key) == DATA


def test_a_flipped_reply_differs_in_one_bit(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, stored: Path
) -> None:
    proxy.add(Fault("GET", flip_reply=700_001))
    expected = bytearray(DATA)
    expected[700_001] ^= 1
    assert store.cat_file(key) == bytes(expected)
    assert store.cat_file(key) == DATA


def test_a_delay_and_a_call_come_before_the_request_is_forwarded(
    proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, stored: Path
) -> None:
    seen: list[Request] = []

    def overwrite(request: Request) -> None:
        seen.append(request)
        stored.write_bytes(b"something else")

    proxy.add(Fault("GET", delay=0.3, call=overwrite))
    start = time.monotonic()
    assert store.cat_file(key, start=0, end=4) == b"some"
    assert time.monotonic() - start >= 0.3
    assert [(r.method, r.path, r.headers["Range"]) for r in seen] == [
        ("GET", f"/{key}", "bytes=0-3")
    ]


def test_what_fails_in_a_call_is_raised_in_the_end(s3: S3Server, key: str, stored: Path) -> None:
    def fail(request: Request) -> None:
        raise AssertionError(f"not {request.method}")

    def use_proxy() -> None:
        with FaultProxy(s3.url) as proxy:
            proxy.add(Fault("GET", call=fail))
            connect(proxy.url).cat_file(key, start=0, end=4)  # comes through the second time

    with pytest.raises(AssertionError, match="not GET"):
        use_proxy()


def test_a_killed_server_is_gone_and_comes_back_with_its_objects(
    s3: S3Server, proxy: FaultProxy, store: s3fs.S3FileSystem, key: str, stored: Path
) -> None:
    proxy.add(Fault("PUT", call=lambda request: s3.kill()))
    with pytest.raises(EndpointConnectionError):
        store.pipe_file(key, b"other")
    s3.start()
    assert store.cat_file(key) == DATA


def test_what_happens_to_the_files_shows_soon(s3: S3Server, key: str, stored: Path) -> None:
    store = connect(s3.url)
    assert store.cat_file(key) == DATA
    stored.write_bytes(DATA[::-1])
    time.sleep(5 * FORGETS_SECONDS)
    assert store.cat_file(key) == DATA[::-1]
    (stored.parent / "added").write_bytes(b"more")
    time.sleep(5 * FORGETS_SECONDS)
    assert [path.rsplit("/", 1)[-1] for path in store.ls(key.rsplit("/", 1)[0])] == [
        "added", "object",
    ]  # fmt: skip
    stored.unlink()
    time.sleep(5 * FORGETS_SECONDS)
    assert not store.exists(key)

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.stores.kinds import KINDS, Kind, used
from tests.stores.s3_server import MotoServer, S3Server, Server, moto_missing, rclone_missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/stores" in str(item.path):
            item.add_marker(pytest.mark.integration)
            # Servers and whole commands: minutes on a busy machine.
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with a bucket, ``bucket``, whose objects are files."""
    if reason := rclone_missing():
        pytest.skip(reason)
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.folder("bucket")
        yield server


@pytest.fixture
def s3_root(s3: S3Server) -> str:
    """A URL below which there is nothing yet; the server runs, whoever killed it before."""
    s3.start()
    return f"s3://bucket/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """An S3 server with a bucket, ``bucket``, in memory; it honours ``If-None-Match``."""
    if reason := moto_missing():
        pytest.skip(reason)
    with MotoServer(tmp_path_factory.mktemp("moto")) as server:
        server.make_bucket("bucket")
        yield server


@dataclass(frozen=True)
class EachStore:
    """A running store of some kind, which this process finds by its environment.

    Attributes:
        name: of the kind.
        kind: what it can.
        server: it runs.
        bucket: a URL.
        root: a URL below which there is nothing yet.
    """

    name: str
    kind: Kind
    server: Server
    bucket: str
    root: str


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """The server of a kind of store: one for all tests, started when it is asked for."""
    started: dict[str, Server] = {}

    def server(name: str) -> Server:
        if name not in started:
            started[name] = KINDS[name].server(tmp_path_factory.mktemp(name))
        started[name].start()
        return started[name]

    yield server
    for one in started.values():
        one.kill()


def each_of(names: Iterable[str]) -> list[Any]:
    """What `each_store` takes: kinds of stores, by name."""
    # Other tests have a server of that kind by default.
    return [
        pytest.param(name, marks=pytest.mark.heavy) if name == "s3-moto" else name for name in names
    ]


@pytest.fixture(params=each_of(KINDS))
def each_store(
    request: pytest.FixtureRequest, servers: Callable[[str], Server]
) -> Iterator[EachStore]:
    kind = KINDS[request.param]
    if reason := kind.missing():
        pytest.skip(reason)
    server = servers(request.param)
    bucket = kind.url.format(port=server.port)
    with used(server.environment):
        yield EachStore(request.param, kind, server, bucket, f"{bucket}/{uuid.uuid4().hex[:12]}")

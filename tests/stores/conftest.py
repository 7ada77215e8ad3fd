from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.stores.s3_server import MotoServer, S3Server, moto_missing, rclone_missing


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

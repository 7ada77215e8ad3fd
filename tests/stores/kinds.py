"""One server for each kind of store, all with a bucket, container or share ``bucket``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from tests.stores.s3_server import (
    KEY,
    RCLONE,
    SECRET,
    MotoServer,
    S3Server,
    Server,
    moto_missing,
    rclone_missing,
)

# Azurite's only account (its README).
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
# gcsfs asks by gRPC of what kind a bucket is, which no emulator answers; read as it is imported.
_NO_KINDS = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
os.environ.update(_NO_KINDS)
WRONG = "d3Jvbmc="  # a key, and a password, that no server here has


class AzureServer(Server):
    """Azurite, in memory."""

    def _command(self, port: int) -> list[str]:
        return [
            str(shutil.which("azurite-blob")), "--blobPort", str(port), "--inMemoryPersistence",
            "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        ]  # fmt: skip

    def environment_with(self, key: str) -> dict[str, str]:
        settings = (
            f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={key};"
            f"BlobEndpoint={self.url}/{_ACCOUNT};"
        )
        return {"AZURE_STORAGE_CONNECTION_STRING": settings}

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_with(_ACCOUNT_KEY)

    def _furnish(self) -> None:
        with used(self.environment):
            fsspec.filesystem("abfs").mkdir("bucket")


class GoogleServer(Server):
    """gcp-storage-emulator, in memory. It lets everybody in."""

    def _command(self, port: int) -> list[str]:
        return [
            sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port",
            str(port), "--default-bucket", "bucket", "--in-memory", "--quiet",
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.url, "FSSPEC_GS": '{"token": "anon"}', **_NO_KINDS,
        }  # fmt: skip


class RcloneServer(Server):
    """rclone's server of one protocol, on a folder."""

    protocol = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "share" / "bucket").mkdir(parents=True)
        self._folder = folder / "share"

    def _command(self, port: int) -> list[str]:
        return [
            str(RCLONE), "serve", self.protocol, "--addr", f"127.0.0.1:{port}", "--user", KEY,
            "--pass", SECRET, "--config", "", "--cache-dir", str(self._folder.parent / "cache"),
            "--dir-cache-time", "10ms", str(self._folder),
        ]  # fmt: skip


class WebdavServer(RcloneServer):
    protocol = "webdav"

    def environment_with(self, key: str) -> dict[str, str]:
        return {"FSSPEC_WEBDAV": json.dumps({"base_url": self.url, "auth": [KEY, key]})}

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_with(SECRET)


class SftpServer(RcloneServer):
    protocol = "sftp"

    def environment_with(self, key: str) -> dict[str, str]:
        # No agent and no key of whoever runs the tests.
        options = {"username": KEY, "password": key, "look_for_keys": False, "allow_agent": False}
        return {"FSSPEC_SFTP": json.dumps(options)}

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_with(SECRET)

    def _answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0


class MotoWithBucket(MotoServer):
    def _furnish(self) -> None:
        self.make_bucket("bucket")


class RcloneWithBucket(S3Server):
    def environment_with(self, key: str) -> dict[str, str]:
        return self.environment | {"AWS_SECRET_ACCESS_KEY": key}

    def _furnish(self) -> None:
        self.folder("bucket")


@dataclass(frozen=True)
class Kind:
    """A kind of store.

    Attributes:
        missing: why there can be none here, or None.
        server: makes one in a folder.
        url: of the bucket; ``{port}`` is the server's.
        keeps_conditions: whether a put can depend on there being no such object.
        forbids: whether it looks at keys and passwords.
    """

    missing: Callable[[], str | None]
    server: type[Server]
    url: str
    keeps_conditions: bool
    forbids: bool = True


def _packages(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        lacking = [name for name in names if not importlib.util.find_spec(name)]
        how = "pip install --no-deps -r launch/constraints/stores.txt"
        return f"not installed: {', '.join(lacking)} ({how})" if lacking else None

    return missing


def _azurite_missing() -> str | None:
    if not shutil.which("azurite-blob"):
        return "no azurite-blob on the PATH: npm install --global azurite"
    return _packages("adlfs")()


def _rclone_with(package: str) -> Callable[[], str | None]:
    return lambda: rclone_missing() or _packages(package)()


KINDS = {
    "s3-moto": Kind(moto_missing, MotoWithBucket, "s3://bucket", True, forbids=False),
    "s3-rclone": Kind(rclone_missing, RcloneWithBucket, "s3://bucket", False),
    "abfs": Kind(_azurite_missing, AzureServer, "abfs://bucket", True),
    "gs": Kind(
        _packages("gcsfs", "gcp_storage_emulator"),
        GoogleServer,
        "gs://bucket",
        False,
        forbids=False,
    ),
    "webdav": Kind(_rclone_with("webdav4"), WebdavServer, "webdav://bucket", False),
    "sftp": Kind(_rclone_with("paramiko"), SftpServer, "sftp://127.0.0.1:{port}/bucket", False),
}


def missing_kinds() -> dict[str, str]:
    """Kinds of stores that cannot be tried here, and why."""
    found = {name: kind.missing() for name, kind in KINDS.items()}
    return {name: why for name, why in found.items() if why}


@contextmanager
def used(environment: dict[str, str]) -> Iterator[None]:
    """This process finds its stores by ``environment``, as one does that starts with it."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(fsspec.config, "conf", {})
        fsspec.config.set_conf_env(fsspec.config.conf, environment)
        forget_clients()
        try:
            yield
        finally:
            forget_clients()


def forget_clients() -> None:
    for client in fsspec.registry.values():
        client.clear_instance_cache()

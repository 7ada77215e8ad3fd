"""Workers of two machines whose own names are loopback to themselves, as Debian sets them up; the
machines are namespaces of this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Command

pytestmark = pytest.mark.heavy
ADDRESSES = {"first": "10.77.0.1", "second": "10.77.0.2"}
# Waits until there is a cable, then is the command.
MACHINE = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
ip link set lo up
echo ready
read -r _
shift 2
exec "$@"
"""


class Machine:
    """A network, a name and an /etc/hosts of its own, in which a command will run."""

    def __init__(self, name: str, folder: Path, command: list[str]) -> None:
        hosts = folder / f"hosts-{name}"
        known = {"localhost": "127.0.0.1", **ADDRESSES, name: "127.0.1.1"}
        hosts.write_text("".join(f"{address}\t{name}\n" for name, address in known.items()))
        self.process = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", MACHINE, "sh", name, str(hosts),
             *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if answer != "ready\n":
            pytest.skip(f"namespaces cannot be made here: {answer}")

    def ip(self, *what: str) -> None:
        network = f"--net=/proc/{self.process.pid}/ns/net"
        subprocess.run(["nsenter", network, "ip", *what], check=True)


@contextmanager
def two_machines(folder: Path, command: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """The command on both of them, with a cable between."""
    both: list[Machine] = []
    try:
        for name in ADDRESSES:
            both.append(Machine(name, folder, command))
        first, second = both
        first.ip("link", "add", "eth0", "type", "veth", "peer", "eth0", "netns",
                 str(second.process.pid))  # fmt: skip
        for machine, address in zip(both, ADDRESSES.values(), strict=True):
            machine.ip("addr", "add", f"{address}/24", "dev", "eth0")
            machine.ip("link", "set", "eth0", "up")
        for machine in both:
            assert machine.process.stdin is not None
            machine.process.stdin.write("\n")
            machine.process.stdin.flush()
        yield [machine.process for machine in both]
    finally:
        for machine in both:
            for process in psutil.Process(machine.process.pid).children(recursive=True):
                process.kill()
            machine.process.kill()
            machine.process.communicate()


def test_torchrun_trains_on_two_machines(config: str, dist_embed: Command, tmp_path: Path) -> None:
    dist_embed("prepare", config)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", "--rdzv-endpoint=first:29500",
        "-m", "dist_embed.cli.main", "train", config,
    ]  # fmt: skip
    with two_machines(tmp_path, command) as processes:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if "loss" in json.loads(line)]) == 8

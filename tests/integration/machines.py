"""Machines for tests: namespaces of this one, each with a network, processes, a name and an
/etc/hosts of its own, and a cable to the first of them. To itself its name is loopback, as Debian
sets it up.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

# Lives as long as its standard input is open. While bash waits it buries processes that are left to
# it, the machine's first. What Ray keeps for all processes of a machine is its own too.
MACHINE = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mkdir -p /tmp/ray
mount --bind "$3" /tmp/ray
ip link set lo up
exec 3<&0
cat <&3 >/dev/null &
echo ready
wait $!
"""
NOBODY = "02:00:00:00:00:00"


class Machine:
    """Where commands run as on a machine of its own.

    Attributes:
        address: of its one interface, eth0.
    """

    def __init__(self, name: str, address: str, known: dict[str, str], folder: Path) -> None:
        self.name, self.address = name, address
        hosts = folder / f"hosts-{name}"
        known = {"localhost": "127.0.0.1", **known, name: "127.0.1.1"}
        hosts.write_text("".join(f"{where}\t{who}\n" for who, where in known.items()))
        ray = folder / f"ray-{name}"
        ray.mkdir()
        self._process = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount-proc", "--pid", "--fork", "--kill-child",
             "bash", "-c", MACHINE, "bash", name, str(hosts), str(ray)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if answer != "ready\n":
            pytest.skip(f"namespaces cannot be made here: {answer}")
        (first,) = psutil.Process(self._process.pid).children()
        self.pid = first.pid
        mine = self._process.pid, first.pid, *(child.pid for child in first.children())
        self._itself = set(mine)
        # A process there is a child of the one that enters, and ends with it.
        self.within = [
            "nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--pid",
            f"--wd={os.getcwd()}", "setpriv", "--pdeathsig=KILL",
        ]  # fmt: skip

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A process there."""
        return subprocess.Popen([*self.within, *command], text=True, **options)

    def ip(self, *what: str) -> None:
        # Where numbers of processes are those of here.
        command = ["nsenter", f"--target={self.pid}", "--net", "ip", *what]
        subprocess.run(command, check=True, timeout=60)

    def crash(self) -> None:
        """End all that runs there at once."""
        here = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        ended = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, OSError):
                its = os.stat(f"/proc/{process.pid}/ns/net").st_ino
                if its == here and process.pid not in self._itself:
                    process.kill()
                    ended.append(process)
        psutil.wait_procs(ended, timeout=60)

    def close(self) -> None:
        self.crash()
        self._process.kill()
        self._process.communicate()


@contextmanager
def machines(folder: Path, *names: str) -> Iterator[list[Machine]]:
    """For the length of a ``with`` block."""
    known = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
    made: list[Machine] = []
    try:
        for name, address in known.items():
            made.append(Machine(name, address, known, folder))
        first, *others = made
        first.ip("link", "add", "name", "eth0", "type", "bridge")
        for number, one in enumerate(others):
            first.ip("link", "add", "name", f"port{number}", "type", "veth",
                     "peer", "name", "eth0", "netns", str(one.pid))  # fmt: skip
            first.ip("link", "set", f"port{number}", "master", "eth0", "up")
        for one in made:
            one.ip("address", "add", f"{one.address}/24", "dev", "eth0")
            one.ip("link", "set", "eth0", "up")
        yield made
    finally:
        for one in made:
            one.close()


@contextmanager
def cut(one: Machine, *others: Machine) -> Iterator[None]:
    """For the length of a ``with`` block what it and the others send each other arrives nowhere,
    and no system says so.
    """
    pairs = [pair for other in others for pair in ((one, other), (other, one))]
    for here, there in pairs:
        here.ip("neigh", "replace", there.address, "lladdr", NOBODY, "dev", "eth0",
                "nud", "permanent")  # fmt: skip
    try:
        yield
    finally:
        for here, there in pairs:
            here.ip("neigh", "del", there.address, "dev", "eth0")

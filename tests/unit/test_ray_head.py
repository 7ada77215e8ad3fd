"""The process that starts a Ray of our own; here a module that starts a process stands for Ray."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dist_embed.cluster import ray_head
from dist_embed.cluster.ray_head import HeadFailed, own_ray
from dist_embed.errors import UserError
from dist_embed.parallel import stop
from tests.left_behind import living

ROOT = Path(__file__).parents[2]
RAY = """
import os, subprocess, types
def init(**settings):
    print("noise", flush=True)
    # In a group of its own, as Ray's workers are.
    child = subprocess.Popen(["sleep", "1000"], preexec_fn=os.setpgrp)
    with open(os.environ["CHILD"], "w") as file:
        file.write(str(child.pid))
    if settings["num_cpus"] == 13:
        raise RuntimeError("no room for the store")
    if settings["num_cpus"] == 14:
        import time; time.sleep(1000)
    if settings["num_cpus"] == 15:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /a/long/one/ray/session")
    assert settings["address"] == "local" and settings["include_dashboard"] is False
    assert settings["log_to_driver"] is False and settings["logging_level"] == 40  # errors
    return types.SimpleNamespace(address_info={"gcs_address": f"here:{settings['num_cpus']}"})
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that names the process which the head has started."""
    (tmp_path / "ray.py").write_text(RAY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    named = tmp_path / "child"
    yield named
    if named.exists() and not ended(named, 0.0):
        psutil.Process(int(named.read_text())).kill()
        raise AssertionError("it has outlived its test")


def ended(child: Path, seconds: float = 30.0) -> bool:
    with suppress(psutil.NoSuchProcess):
        return living([psutil.Process(int(child.read_text()))], seconds) == []
    return True


def test_it_is_in_a_session_of_its_own_and_deaf(child: Path) -> None:
    with own_ray(3) as address:
        assert address == "here:3"
        pid = int(child.read_text())
        head = psutil.Process(pid).ppid()
        assert os.getsid(pid) == os.getsid(head) == head
        for process in (pid, head):
            status = Path(f"/proc/{process}/status").read_text().split()
            blocked = int(status[status.index("SigBlk:") + 1], 16)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                assert blocked >> (number - 1) & 1
    assert ended(child)
    assert not psutil.pid_exists(head)


def test_it_outlives_a_connection_that_cannot_be_ended(
    child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Ray would end this process before it has told anything."""
    monkeypatch.setattr(stop, "_abruptly", True)
    monkeypatch.setattr(ray_head, "_left", [])
    with own_ray(3):
        pass
    gc.collect()
    time.sleep(0.5)
    assert not ended(child, 0.0)
    (head,) = ray_head._left
    ray_head._end(head)  # as the end of this process does
    assert ended(child)


def test_why_it_could_not_be_started_is_told(child: Path) -> None:
    with pytest.raises(HeadFailed, match="RuntimeError: no room for the store"), own_ray(13):
        pass
    assert ended(child)


def test_a_folder_that_is_too_long_for_its_sockets_is_named(
    child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/a/long/one")
    with pytest.raises(UserError, match="RAY_TMPDIR: '/a/long/one' is too long"), own_ray(15):
        pass
    monkeypatch.delenv("RAY_TMPDIR")
    with pytest.raises(UserError, match=r"TMPDIR: '.+' is too long for a socket"), own_ray(15):
        pass


def test_it_imports_nothing_from_the_working_folder(
    child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working"
    folder.mkdir()
    for name in ("queue", "ray", "socket", "dist_embed"):
        (folder / f"{name}.py").write_text("raise SystemExit('of the working folder')\n")
    monkeypatch.chdir(folder)
    with own_ray(3) as address:
        assert address == "here:3"
    assert "PYTHONSAFEPATH" not in os.environ


def test_an_interrupted_start_leaves_nothing(child: Path) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise SystemExit(130)

    def wait_and_interrupt() -> None:
        while not (child.exists() and child.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        threading.Thread(target=wait_and_interrupt, daemon=True).start()
        with pytest.raises(SystemExit), own_ray(14):
            pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended(child)


def test_it_ends_with_a_command_that_is_killed(child: Path) -> None:
    code = (
        "from dist_embed.cluster.ray_head import own_ray\n"
        "with own_ray(2):\n"
        "    print('up', flush=True)\n"
        "    input()\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stdout.readline() == b"up\n"
    command.kill()
    command.communicate()
    assert ended(child)


def test_one_that_does_not_end_is_killed(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_head, "END_SECONDS", 2.0)  # also those in which it is killed
    with own_ray(2):
        head = psutil.Process(int(child.read_text())).ppid()
        os.kill(head, signal.SIGSTOP)
    assert ended(child)
    assert not psutil.pid_exists(head)


class Head:
    """What stands for the process: it answers what it is told to, and takes a while to end."""

    pid = 2**22 + 7  # none has such a number

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, code: int) -> None:
        reader, writer = os.pipe()
        if answer is not None:
            os.write(writer, answer)
            os.close(writer)
        self.stdout = os.fdopen(reader)
        self.stdin = open(os.devnull, "w")  # noqa: SIM115
        self.returncode = code
        self.asked: dict[str, Any] = {}
        self.killed: list[int] = []
        monkeypatch.setattr(subprocess, "Popen", self.started)
        monkeypatch.setattr(ray_head, "_kill_session", self.killed.append)

    def started(self, command: list[str], **how: Any) -> Head:
        self.asked = how | {"command": command}
        return self

    def wait(self, seconds: float) -> int:
        return self.returncode


def test_one_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_head, "START_SECONDS", 0.01)
    head = Head(monkeypatch, None, 0)
    with pytest.raises(HeadFailed, match="has not answered within 0 s"), own_ray(2):
        pass
    assert head.stdin.closed
    assert head.stdout.closed


@pytest.mark.parametrize("code", [0, 3])
def test_a_session_is_ended_where_its_head_was_ended_from_outside(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    head = Head(monkeypatch, b"here:7\n", code)
    with own_ray(5) as address:
        assert address == "here:7"
        assert not head.stdin.closed
    assert head.stdin.closed
    assert head.killed == ([head.pid] if code else [])
    assert head.asked["command"][1] == "-c"
    assert head.asked["command"][-1] == "5"
    assert head.asked["start_new_session"]
    head = Head(monkeypatch, b"", code)
    with pytest.raises(HeadFailed, match=f"exit code {code}"), own_ray(5):
        pass


@pytest.mark.parametrize(
    ("left", "kills", "seconds"), [([], 0, 0.0), ([[7, 8], [8], []], 3, 0.04), (None, 501, 10.0)]
)
def test_a_session_is_ended_until_it_is_empty_or_it_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, left: list[list[int]] | None, kills: int, seconds: float
) -> None:
    now = 100.0

    def sleep(pause: float) -> None:
        nonlocal now
        now += pause

    def members(session: int) -> list[int]:
        assert session == 5
        return [9] if left is None else left.pop(0) if left else []

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        raise ProcessLookupError  # it has ended by itself

    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(ray_head, "_members", members)
    monkeypatch.setattr(ray_head, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(os, "kill", kill)
    ray_head._kill_session(5)
    assert len(killed) == pytest.approx(kills, abs=2 if left is None else 0)
    assert {number for _, number in killed} <= {signal.SIGKILL}
    assert now - 100.0 == pytest.approx(seconds, abs=0.05 if left is None else 1e-6)


def test_members_of_a_session_are_the_living_ones_but_this_process(tmp_path: Path) -> None:
    one = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        assert ray_head._members(one.pid) == [one.pid]
    finally:
        one.kill()
    limit = time.monotonic() + 30
    while ray_head._members(one.pid) and time.monotonic() < limit:
        time.sleep(0.001)
    assert ray_head._members(one.pid) == []  # a zombie by now
    one.wait()
    assert os.getpid() not in ray_head._members(os.getsid(0))

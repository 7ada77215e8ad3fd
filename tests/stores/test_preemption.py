"""SIGTERM: all workers end after the same step, with a checkpoint, within a limit."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import s3fs
import yaml

from dist_embed.checkpoint.catalogue import current_names, open_checkpoints, read_manifest
from dist_embed.config.schema import Config
from dist_embed.parallel.stop import REPEAT_SECONDS
from tests.left_behind import Traces
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.killing import (
    OLD,
    Kill,
    Material,
    Place,
    Whole,
    check_committed,
    check_goes_on,
    losses,
    material,
    saved,
    train,
)
from tests.stores.s3_server import S3Server, environment

ENDLESS = 100_000  # steps of a run that is asked to stop


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.getbasetemp() / "killing")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path / "run")


def place_in(folder: Path) -> Place:
    return Place(str(folder), folder)


@dataclass(frozen=True)
class Command:
    """``dist-embed train`` under way."""

    process: subprocess.Popen[str]
    terminal: int | None = None

    @classmethod
    def start(
        cls, config: Config, folder: Path, *, on_terminal: bool = False, **environment: str
    ) -> Command:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config.model_dump()))
        arguments = ["-m", "dist_embed.cli.main", "train", str(path), "--launcher", "local"]
        ours, its = os.openpty() if on_terminal else (None, subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, *arguments], start_new_session=True, text=True,
            stdin=its if on_terminal else None, stdout=its, stderr=its,
            env={**psutil.Process().environ(), **environment},
            # The terminal that this process is the first one of.
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if on_terminal else None,
        )  # fmt: skip
        if ours is not None:
            os.close(its)
        return cls(process, ours)

    def close_terminal(self) -> None:
        """Hang up: its processes get SIGHUP, and what they write fails from then on."""
        assert self.terminal is not None
        os.close(self.terminal)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not reached():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self, code: int) -> str:
        """What it said; it must end with ``code``."""
        said, complaint = self.process.communicate(timeout=200)
        assert self.process.returncode == code, f"{said}\n{complaint}"
        return f"{said}{complaint}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files with a short name: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="de-", dir="/tmp") as made:
        yield Path(made)


# Who gets which signal, and what the command ends with.
ASKED = {
    "the group twice": (signal.SIGTERM, 143),  # as `timeout` sends it
    "the launcher": (signal.SIGTERM, 143),
    "a worker": (signal.SIGTERM, 143),
    "every process": (signal.SIGTERM, 143),  # as the end of a Slurm step
    "the group": (signal.SIGINT, 130),  # Ctrl-C
    "a terminal that closes": (signal.SIGHUP, 129),
}


@pytest.mark.parametrize(
    "who",
    [
        "a terminal that closes",
        *(pytest.param(who, marks=pytest.mark.heavy) for who in list(ASKED)[:-1]),
    ],
)
def test_a_run_asked_to_stop_goes_on_as_if_not(
    who: str, shared: Material, place: Place, tmp_path: Path, folder: Path
) -> None:
    number, code = ASKED[who]
    config = shared.configuration(place, max_steps=ENDLESS, every_steps=50)
    command = Command.start(
        config, tmp_path, on_terminal=who == "a terminal that closes", TMPDIR=str(folder)
    )
    command.wait_until(lambda: len(losses(place.uri)) > 5)
    this = psutil.Process(command.process.pid)
    traces = Traces(this.pid, folder)
    assert traces.semaphores
    started = this.children(recursive=True)
    if who == "a worker":
        _workers(this.pid)[1].send_signal(number)
    elif who == "a terminal that closes":
        command.close_terminal()
    elif who == "every process":
        for process in [this, *started]:
            process.send_signal(number)
    else:
        send = os.kill if who == "the launcher" else os.killpg
        for _ in range(2 if who == "the group twice" else 1):
            send(this.pid, number)
    said = command.ended(code)
    store = open_checkpoints(place.uri)
    newest = current_names(store)[-1]
    step = newest.step
    assert step > 5
    if who != "a terminal that closes":
        assert f"stopped as asked after step {step}; started again, the run goes on" in said
        assert ("Ctrl-C again ends it at once" in said) == (number == signal.SIGINT)
    saved(store, read_manifest(store, newest))
    traces.check_gone()
    some_more = {"max_steps": step + 3, "every_steps": step + 3}
    ended = train(shared.configuration(place, **some_more), {})
    assert ended.result is not None, ended.traces
    assert ended.result.resumed_at == step
    whole = Whole.train(shared.configuration(place_in(tmp_path / "whole"), **some_more))
    assert losses(place.uri) == whole.losses
    last = read_manifest(store, current_names(store)[-1])
    assert saved(store, last) == whole.saved[step + 3]


def test_a_second_ctrl_c_ends_a_run_at_once_and_leaves_nothing(
    shared: Material, place: Place, tmp_path: Path, folder: Path
) -> None:
    config = shared.configuration(place, max_steps=ENDLESS, every_steps=50)
    command = Command.start(config, tmp_path, TMPDIR=str(folder))
    command.wait_until(lambda: len(losses(place.uri)) > 5)
    traces = Traces(command.process.pid, folder)
    assert traces.semaphores
    for worker in _workers(command.process.pid):
        worker.suspend()  # they do not end by themselves
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.process.stdout is not None
    while "Ctrl-C again ends it at once" not in (line := command.process.stdout.readline()):
        assert line, command.process.communicate()
    time.sleep(REPEAT_SECONDS + 0.1)
    os.killpg(command.process.pid, signal.SIGINT)
    _, complaint = command.process.communicate(timeout=60)
    assert command.process.returncode == 130, complaint
    assert "Traceback" not in complaint
    traces.check_gone()


def _workers(pid: int) -> list[psutil.Process]:
    """Forked from a child of the launcher."""
    started = psutil.Process(pid).children()
    servers = [child for child in started if "forkserver" in " ".join(child.cmdline())]
    found = [worker for server in servers for worker in server.children()]
    assert len(found) == 2
    return found


@pytest.mark.parametrize(
    ("asked", "asynchronous"),
    [
        ((1,), True),
        ((0, 1), False),
        pytest.param((1,), False, marks=pytest.mark.heavy),
        pytest.param((0,), True, marks=pytest.mark.heavy),
        pytest.param((0,), False, marks=pytest.mark.heavy),
        pytest.param((0, 1), True, marks=pytest.mark.heavy),
    ],
)
def test_one_worker_asked_to_stop_stops_all_after_the_same_step(
    asked: tuple[int, ...], asynchronous: bool, shared: Material, place: Place
) -> None:
    place.fill(shared.base)
    config = shared.configuration(place, saving="behind" if asynchronous else "waiting")
    ended = train(config, {}, Kill("amid a step", 0, asked, signal=signal.SIGTERM))
    assert ended.result is not None, ended.traces
    assert ended.codes == [0, 0]
    assert ended.result.stopped
    assert ended.result.steps == 5
    assert check_committed(place, shared.whole) == (4, 5)
    check_goes_on(config, place, shared.whole, 5)


@pytest.mark.parametrize(
    "point", ["amid reading chunks", pytest.param("loaded", marks=pytest.mark.heavy)]
)
def test_a_run_asked_to_stop_before_its_first_step_ends_where_it_began(
    point: str, shared: Material, place: Place
) -> None:
    place.fill(shared.base)
    config = shared.configuration(place)
    ended = train(config, {}, Kill(point, 1, (1,), signal=signal.SIGTERM))
    assert ended.codes == [0, 0], ended.traces
    assert ended.result is not None
    assert ended.result.stopped
    assert ended.result.steps == OLD[-1]
    assert check_committed(place, shared.whole) == OLD
    check_goes_on(config, place, shared.whole, OLD[-1])


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_save_that_hangs_does_not_hold_up_the_end(
    rank: int, shared: Material, place: Place
) -> None:
    place.fill(shared.base)
    # Many steps after the save begins, so that none waits for it before the request is seen.
    config = shared.configuration(place, max_steps=ENDLESS, every_steps=20, drain_seconds=1.0)
    hanging = Kill("amid a chunk", rank, (0, 1), signal=signal.SIGTERM, hang=3600.0)
    ended = train(config, {}, hanging)
    assert ended.codes == [1, 1], ended.traces
    for trace in ended.traces:
        assert "the checkpoint of step 20 was not written within 1 s" in trace
    assert check_committed(place, shared.whole) == OLD
    check_goes_on(shared.configuration(place), place, shared.whole, OLD[-1])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("asynchronous", "limit", "code", "message"),
    [
        (True, 3, 2, "the checkpoint of step 300 was not written within 3 s"),
        (False, 3, 2, "the checkpoint of step 300 was not written within 3 s"),
    ],
)
def test_a_command_whose_store_hangs_ends_in_time(
    asynchronous: bool,
    limit: float,
    code: int,
    message: str,
    shared: Material,
    s3: S3Server,
    s3_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()
    hanging = threading.Event()

    def hang(request: object) -> None:
        hanging.set()
        over.wait(300)

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    behind = s3.folder("bucket") / s3_root.removeprefix("s3://bucket/") / "run"
    place = Place(f"{s3_root}/run", behind, s3.environment)
    place.fill(shared.base)
    config = shared.configuration(
        place, max_steps=50_000, every_steps=300, drain_seconds=3.0, timeout_seconds=300.0,
        saving="behind" if asynchronous else "waiting",
    )  # fmt: skip
    with FaultProxy(s3.url) as proxy:
        proxy.add(Fault("PUT", r"step-000000300-.*/chunk-", times=None, call=hang))
        command = Command.start(config, tmp_path, **environment(proxy.url))
        try:
            command.wait_until(hanging.is_set)
            asked = time.monotonic()
            command.process.send_signal(signal.SIGTERM)
            said = command.ended(code)
            took = time.monotonic() - asked
        finally:
            over.set()
    assert message in said
    assert took < limit + 20, said
    assert check_committed(place, shared.whole) == OLD
    check_goes_on(shared.configuration(place), place, shared.whole, OLD[-1])
    s3fs.S3FileSystem.clear_instance_cache()

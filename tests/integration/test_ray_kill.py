"""Killing what Ray runs, and the driver asked to stop; the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.parallel.stop import REPEAT_SECONDS
from tests.integration.conftest import Command
from tests.integration.ray_training import Undisturbed
from tests.integration.run_metrics import metrics
from tests.left_behind import Traces, living

pytestmark = [
    pytest.mark.heavy, pytest.mark.usefixtures("ray_alone"),
    pytest.mark.timeout(900, func_only=True),
]  # fmt: skip

STEPS = 400


class Training:
    """A run like ``whole`` under a Ray of its own, that something is done to."""

    def __init__(self, whole: Undisturbed, run: str, as_process: Command, temporary: Path) -> None:
        self.temporary = temporary
        self._whole = whole
        self.run = run
        self._command = [
            *whole.train, f"run.uri={run}", "--launcher", "ray", f"train.max_steps={STEPS}",
        ]  # fmt: skip
        self._as_process = as_process

    @contextmanager
    def under_way(self) -> Iterator[subprocess.Popen[str]]:
        """The command, after some steps; in the end nothing that it has started is left."""
        with subprocess.Popen(
            [sys.executable, "-m", "dist_embed.cli.main", *self._command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"TMPDIR": str(self.temporary)},
        ) as process:  # fmt: skip
            deadline = time.monotonic() + 300
            while max(list_steps(self.run), default=0) < 40:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            started = psutil.Process(process.pid).children(recursive=True)
            yield process
        left = living(started)
        for orphan in left:
            orphan.kill()
        assert not left

    def goes_on(self) -> None:
        """The same command resumes from the newest checkpoint and ends as the other run did."""
        newest = list_steps(self.run)[-1]
        resumed = self._as_process(*self._command)
        assert f"resuming from the checkpoint of step {newest}\n" in resumed.stdout
        self.is_as_if_not()

    def is_as_if_not(self) -> None:
        assert metrics(self.run) == self._whole.metrics(STEPS)
        assert list_steps(self.run)[-1] == STEPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(
        tmp_path_factory.mktemp("undisturbed"), f"train.evaluate_every={STEPS}",
        "checkpoint.every_steps=20", "cluster.max_failures=1",
    )  # fmt: skip


@pytest.fixture
def training(whole: Undisturbed, as_process: Command, tmp_path: Path) -> Iterator[Training]:
    # A folder for temporary files with a short name: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="de-", dir="/tmp") as temporary:
        yield Training(whole, str(tmp_path / "run"), as_process, Path(temporary))


def _child(process: subprocess.Popen[str], name: str) -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        if name in " ".join(child.cmdline()):
            return child
    raise AssertionError(f"no {name} below {process.pid}")


@pytest.mark.parametrize("which", ["RayTrainWorker", "TrainController"])
def test_what_is_killed_is_replaced(training: Training, which: str) -> None:
    """Also what runs the workers. It had all slots there are, which Ray would give back with the
    command alone.
    """
    with training.under_way() as process:
        _child(process, which).kill()
        said, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert said.count("resuming from the checkpoint of step") == 1
    training.is_as_if_not()


def test_a_command_whose_head_stands_still_is_asked_to_stop(training: Training) -> None:
    with training.under_way() as process:
        _child(process, "gcs_server").suspend()
        time.sleep(5)  # meanwhile Ray is asked what it does not answer
        process.terminate()
        _, said = process.communicate(timeout=300)
    assert process.returncode == 143
    found = re.search(r"stopped as asked after step (\d+)", said)
    assert found, said
    assert list_steps(training.run)[-1] == int(found[1])
    training.goes_on()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_command_that_is_interrupted_ends_with_a_checkpoint(
    training: Training, number: int, code: int
) -> None:
    with training.under_way() as process:
        traces = Traces(process.pid, training.temporary)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=300)
    assert process.returncode == code
    traces.check_gone()
    found = re.search(r"stopped as asked after step (\d+)", said)
    assert found, said
    assert list_steps(training.run)[-1] == int(found[1])
    training.goes_on()


def test_a_second_ctrl_c_ends_the_run_at_once(training: Training) -> None:
    with training.under_way() as process:
        controller = _child(process, "TrainController")
        workers = [w for w in psutil.Process(process.pid).children(recursive=True)
                   if "RayTrainWorker" in " ".join(w.cmdline())]  # fmt: skip
        for worker in workers:
            worker.suspend()  # they do not end by themselves
        traces = Traces(process.pid, training.temporary)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        while "asked to stop" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        time.sleep(REPEAT_SECONDS + 0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not controller.is_running()
    traces.check_gone()


def test_a_killed_command_leaves_no_process_behind(training: Training) -> None:
    with training.under_way() as process:
        process.kill()


def test_lines_are_translated_once_though_a_worker_is_killed(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    dist_embed("train", config)
    lines = ["the mabru nitesa the mostas .", "", "nitesa", "the mostas ."]
    expected = dist_embed("translate", str(tmp_path / "run"), text="\n".join(lines)).stdout
    with subprocess.Popen(
        [sys.executable, "-m", "dist_embed.cli.main", "translate", str(tmp_path / "run"),
         "--launcher", "ray"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        print(*lines[:2], sep="\n", file=process.stdin, flush=True)
        first = [process.stdout.readline() for _ in range(2)]
        assert all(first), process.communicate()
        _child(process, "RayTrainWorker").kill()
        rest, said = process.communicate("\n".join(lines[2:]), timeout=300)
    assert process.returncode == 0, said
    assert "workers are started again" in said
    assert "".join(first) + rest == expected

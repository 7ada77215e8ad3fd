from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from dist_embed.cluster import fork_server
from dist_embed.cluster.fork_server import start_ahead, worker_context
from dist_embed.parallel.stop import SIGNALS

ROOT = Path(__file__).parents[2]


def test_a_folder_of_temporary_files_that_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "import tempfile\n"
        "import os\n"
        f"os.environ['TMPDIR'] = tempfile.tempdir = {str(folder)!r}\n"
        "from dist_embed.cluster.fork_server import worker_context\n"
        "from dist_embed.errors import UserError\n"
        "try:\n"
        "    worker_context('cpu')\n"
        "except UserError as exc:\n"
        "    print(exc)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=True,
    ).stdout  # fmt: skip
    assert f"TMPDIR: {str(folder)!r} is too long for a socket" in said


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The signals that were blocked at each start of the server, which is none."""
    blocked: list[set[int]] = []
    monkeypatch.setattr(
        forkserver, "ensure_running",
        lambda: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    )  # fmt: skip
    return blocked


def test_workers_of_cuda_are_started_anew_and_others_are_forked(started: list[Any]) -> None:
    assert worker_context("cuda").get_start_method() == "spawn"
    assert started == []
    assert worker_context("cpu").get_start_method() == "forkserver"
    assert started == [set(SIGNALS)]  # deaf, so that it outlives the workers


@pytest.mark.parametrize(
    ("device", "has_driver", "starts"),
    [("cpu", True, True), ("cpu", False, True), ("auto", False, True), ("auto", True, False),
     ("cuda", True, False), ("cuda", False, False)],
)  # fmt: skip
def test_the_server_starts_ahead_where_workers_will_be_forked(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, device: str, has_driver: bool, starts: bool
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(
        os.path, "exists", lambda path: has_driver if "nvidia" in str(path) else exists(path)
    )
    start_ahead(device)
    assert len(started) == starts


def test_another_error_of_the_server_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(forkserver, "ensure_running", fail)
    with pytest.raises(OSError, match="Too many open files"):
        worker_context("cpu")


def test_the_server_imports_what_workers_need(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[list[str]] = []
    monkeypatch.setattr(forkserver, "set_forkserver_preload", named.append)
    worker_context("cpu")
    assert named == [["dist_embed.cluster.forked"]]


def test_the_server_is_no_copy_of_the_callers_surroundings(tmp_path: Path) -> None:
    """A module in the working directory is not the library's of that name, and a warning of a
    library no error, although the caller's Python was told so. But workers find its environment.
    """
    (tmp_path / "queue.py").write_text("JOBS = []\n")
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "warns.py").write_text("import warnings\nwarnings.warn('old', DeprecationWarning)")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "import os\n"
        "from dist_embed.cluster import fork_server\n"
        "fork_server._IMPORTED = ['queue', 'warns']\n"
        "context = fork_server.worker_context('cpu')\n"
        "del __file__  # children would run it again\n"
        "do = 'import os, queue, warns; print(queue.Queue, os.environ[\"STORE\"], flush=True)'\n"
        "child = context.Process(target=exec, args=(do,))\n"
        "child.start()\n"
        "child.join(60)\n"
        "assert child.exitcode == 0, child.exitcode\n"
        "assert os.environ.get('PYTHONSAFEPATH') is None\n"
    )
    path = f"{ROOT}{os.pathsep}{libraries}"
    environment = {
        **os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error::DeprecationWarning",
        "STORE": "here",
    }  # fmt: skip
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", str(script)], cwd=tmp_path,
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "<class 'queue.Queue'> here\n"), done.stderr


def test_what_the_system_says_of_the_server_is_not_its_own_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who follows causes would not come to an end."""

    def no_room() -> None:
        raise OSError(errno.ENOSPC, "no space", "/tmp/x")

    monkeypatch.setattr(forkserver, "ensure_running", no_room)
    with pytest.raises(OSError, match="no space") as caught:
        fork_server._start()
    assert caught.value.__cause__ is None

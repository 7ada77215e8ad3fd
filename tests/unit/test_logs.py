"""Logs, of runs at a URL too, whose folder lies where other users can write."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_embed.errors import UserError
from dist_embed.observe.quiet import (
    open_log,
    quiet_screen,
    redirect_output,
    worker_log,
)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a run at a URL, in a new folder of temporary files."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "shared"))
    return worker_log("s3://bucket/run", 0, trains=True)


def write(log: Path, text: bytes) -> None:
    handle = open_log(log)
    os.write(handle, text)
    os.close(handle)


def test_the_log_of_a_run_at_a_url_is_closed_to_others(log: Path) -> None:
    # As another version left it in a group whose members may write.
    log.parent.parent.mkdir()
    log.parent.parent.chmod(0o775)
    write(log, b"one ")
    log.parent.chmod(0o777)
    write(log, b"two")
    assert log.read_bytes() == b"one two"
    assert [path.stat().st_mode & 0o777 for path in (log.parent.parent, log.parent)] == [0o700] * 2


Trap = Callable[[Path, Path], None]
TRAPS: dict[str, tuple[int, Trap]] = {
    "a link for the user's folder": (2, lambda path, victim: path.symlink_to(victim.parent)),
    "a link for the run's folder": (1, lambda path, victim: path.symlink_to(victim.parent)),
    "a link for the log": (0, lambda path, victim: path.symlink_to(victim)),
    "a link to nothing": (0, lambda path, victim: path.symlink_to(victim.with_name("new"))),
    "another name": (0, lambda path, victim: path.hardlink_to(victim)),
    "a file for the folder": (2, lambda path, victim: path.write_bytes(b"")),
    "a folder for the log": (0, lambda path, victim: path.mkdir()),
    "a pipe": (0, lambda path, victim: os.mkfifo(path)),
}


@pytest.mark.parametrize("trap", list(TRAPS))
def test_what_lies_in_the_way_of_such_a_log_is_refused(
    log: Path, tmp_path: Path, trap: str
) -> None:
    above, set_trap = TRAPS[trap]
    path = [log, *log.parents][above]
    path.parent.mkdir(parents=True, exist_ok=True)
    victim = tmp_path / "victims" / log.name
    victim.parent.mkdir()
    victim.write_bytes(b"secret")
    set_trap(path, victim)
    with pytest.raises(UserError, match=f"{path}, which is a link, or not what .* TMPDIR"):
        open_log(log)
    assert victim.read_bytes() == b"secret"
    assert os.listdir(victim.parent) == [victim.name]


def test_a_worker_s_output_is_not_sent_through_a_link(log: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret")
    log.parent.mkdir(parents=True)
    log.symlink_to(victim)
    with pytest.raises(UserError, match="which is a link"):
        redirect_output(log)
    assert victim.read_bytes() == b"secret"


@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_another_user_has_made_is_refused(
    log: Path, monkeypatch: pytest.MonkeyPatch, above: int
) -> None:
    write(log, b"")
    theirs = [log, *log.parents][above]
    fstat, inode = os.fstat, theirs.stat().st_ino

    def as_theirs(handle: int) -> os.stat_result:
        found = list(fstat(handle))
        found[4] += found[1] == inode  # st_uid, st_ino
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", as_theirs)
    with pytest.raises(UserError, match=f"{theirs}, which"):
        open_log(log)


def test_another_error_names_the_log(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=f"No space left on device: '{log.parent.parent}'") as told:
        open_log(log)
    assert told.value.errno == errno.ENOSPC
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_in_the_folder_of_a_local_run_are_its_users(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").symlink_to(tmp_path / "scratch")
    write(worker_log(str(tmp_path / "run"), 0, trains=True), b"text")
    assert (tmp_path / "scratch" / "worker-0.log").read_bytes() == b"text"


IN_PLACE: dict[str, Callable[[Path, Path], None]] = {
    "a link": lambda path, victim: path.symlink_to(victim),
    "a link to nothing": lambda path, victim: path.symlink_to(victim.with_name("new")),
    "a pipe": lambda path, victim: os.mkfifo(path),
    "a folder": lambda path, victim: path.mkdir(),
}


@pytest.mark.parametrize("put", list(IN_PLACE))
def test_what_lies_in_place_of_a_runs_log_is_not_written_to(
    log: Path, tmp_path: Path, put: str
) -> None:
    """A training says so, what only reads a run writes its log elsewhere."""
    run, victim = tmp_path / "run", tmp_path / "victims" / "victim"
    victim.parent.mkdir()
    victim.write_bytes(b"secret")
    (run / "logs").mkdir(parents=True)
    IN_PLACE[put](run / "logs" / "worker-0.log", victim)
    ours = worker_log(str(run), 0, trains=True)
    said = "a link, not written through|not a regular file|Is a directory"
    with pytest.raises(OSError, match=f"({said}).*'{ours}'"):
        open_log(ours)
    elsewhere = worker_log(str(run), 0, trains=False)
    assert elsewhere.parent.parent == log.parent.parent
    write(elsewhere, b"text")
    assert victim.read_bytes() == b"secret"
    assert os.listdir(victim.parent) == [victim.name]
    assert worker_log(str(run), 1, trains=False) == run / "logs" / "worker-1.log"


@pytest.mark.parametrize("what", ["run", "logs", "worker-0.log"])
def test_who_only_reads_a_run_and_may_not_write_there_has_the_log_elsewhere(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Another user, or on a read-only disk: `os.access` knows."""
    run = tmp_path / "run"
    folder = run if what == "run" else run / "logs"
    folder.mkdir(parents=True)
    if what == "worker-0.log":
        write(folder / what, b"theirs")
    place = folder / what if what == "worker-0.log" else folder
    access = os.access
    assert worker_log(str(run), 0, trains=False) == run / "logs" / "worker-0.log"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place and access(path, mode))
    assert worker_log(str(run), 0, trains=False).parent.parent == log.parent.parent
    assert worker_log(str(run), 0, trains=True) == run / "logs" / "worker-0.log"


def test_only_errors_of_third_parties_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
    level = root.level
    try:
        with warnings.catch_warnings():
            quiet_screen()
            logging.getLogger("some.library").warning("noise")
            logging.getLogger("some.library").error("it failed")
            warnings.warn("more noise", stacklevel=1)
    finally:
        root.setLevel(level)
    assert capsys.readouterr() == ("", "it failed\n")

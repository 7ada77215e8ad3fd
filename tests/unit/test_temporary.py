"""Temporary folders, and those that killed processes leave."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dist_embed.errors import NotWritable
from dist_embed.storage import temporary
from dist_embed.storage.temporary import remove_abandoned, shared_folder, temporary_folder

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys\n"
    "from dist_embed.storage.temporary import temporary_folder\n"
    "with temporary_folder('words-', sys.argv[1]) as folder:\n"
    "    open(folder + '/run', 'w').close()\n"
    "    print(folder, flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder until it is told to go."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_next_one_removes_what_a_killed_process_has_left(tmp_path: Path) -> None:
    living, its_folder = holder(tmp_path)
    killed, left = holder(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    foreign = tmp_path / "words-0badb007-x"  # another kernel's, which shares the folder
    other = tmp_path / f"lexicon-{left.name.removeprefix('words-')}"
    for folder in (foreign, other):
        folder.mkdir()
    assert (left / "run").exists()
    with temporary_folder("words-", tmp_path) as ours:
        assert Path(ours).parent == tmp_path
        assert sorted(tmp_path.iterdir()) == sorted([its_folder, foreign, other, Path(ours)])
        assert (its_folder / "run").exists()
        # Nor does one of this process.
        with temporary_folder("words-", tmp_path) as second:
            assert second != ours
            assert Path(ours).exists()
    living.communicate("", timeout=60)
    assert living.returncode == 0
    assert sorted(tmp_path.iterdir()) == sorted([foreign, other])


def test_a_command_removes_all_that_killed_ones_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kernel = temporary._this_kernel()
    stays = [tmp_path / name for name in
             ("dist_embed-1000", "dist_embed-ray-0badb007-x", f"other-{kernel}-x")]  # fmt: skip
    for folder in [*stays, tmp_path / f"dist_embed-ray-{kernel}-x"]:
        folder.mkdir()
    with temporary_folder("dist_embed-words-") as ours:
        temporary.remove_abandoned()
        assert sorted(tmp_path.iterdir()) == sorted([*stays, Path(ours)])


def test_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = tmp_path / "others"
    others.mkdir()
    link = tmp_path / f"x-{temporary._this_kernel()}-link"
    link.symlink_to(others)
    removed: list[str] = []
    monkeypatch.setattr(temporary.shutil, "rmtree", lambda path, **_: removed.append(path))
    with temporary_folder("x-", tmp_path) as folder:
        assert removed == []
    assert removed == [folder]


def test_it_goes_with_its_block_after_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), temporary_folder("x-") as folder:  # noqa: PT012
        assert [Path(folder)] == list(tmp_path.glob("x-*"))
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_folder_that_was_taken_for_abandoned_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def made_and_removed(**where: str) -> str:
        made.append(make(**where))
        if len(made) == 1:
            monkeypatch.setattr(fcntl, "flock", removing)
        return made[-1]

    lock = fcntl.flock

    def removing(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        os.rmdir(made[0])  # by another process, just before
        lock(handle, how)

    monkeypatch.setattr(tempfile, "mkdtemp", made_and_removed)
    with temporary_folder("x-", tmp_path) as folder:
        assert folder == made[1] != made[0]
        assert list(tmp_path.iterdir()) == [Path(folder)]


def test_a_folder_that_was_taken_for_abandoned_at_once_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def made_and_gone(**where: str) -> str:
        made.append(make(**where))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", made_and_gone)
    with temporary_folder("x-", tmp_path) as folder:
        assert folder == made[1] != made[0]


def test_a_folder_that_another_process_is_removing_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made, held = tempfile.mkdtemp, [], []

    def made_and_held(**where: str) -> str:
        made.append(make(**where))
        if len(made) == 1:
            held.append(os.open(made[0], os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", made_and_held)
    with temporary_folder("x-", tmp_path) as folder:
        assert folder == made[1]
    os.close(held[0])


def test_where_there_are_no_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with temporary_folder("x-", tmp_path) as ours, temporary_folder("x-", tmp_path):
        assert Path(ours).exists()
    assert list(tmp_path.iterdir()) == []


def test_without_a_boot_id_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "_BOOT_ID", tmp_path / "absent")
    with temporary_folder("x-", tmp_path) as folder:
        assert f"-pid{os.getpid()}-" in Path(folder).name


def test_a_command_goes_on_where_nothing_temporary_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What needs such a folder says so."""

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    remove_abandoned()
    with pytest.raises(NotWritable, match=r"No usable temporary .*; set TMPDIR"):
        temporary_folder("x").__enter__()
    with pytest.raises(NotWritable, match="set TMPDIR"):
        shared_folder("x")

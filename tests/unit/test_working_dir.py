"""The folder that is sent with a job of Ray."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from zipfile import ZipFile

import pytest

from dist_embed.errors import UserError
from dist_embed.jobs import working_dir
from dist_embed.jobs.working_dir import pack


def packed(folder: Path, **how: object) -> set[str]:
    given = {"with_package": False, "but": set(), **how}
    target = folder.parent / "sent.zip"
    size = pack(str(folder), target, **given)  # type: ignore[arg-type]
    assert size == target.stat().st_size
    with ZipFile(target) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    for name in (
        "a.py", "my/data/b.py", "my/runs/c.py", "my/dist_embed/d.py", "dist_embed/e.py",
        "runs/one/f", "data/g", ".git/h", ".venv/i", ".venv-cpu/j", "my/venv/k",
        "my/__pycache__/l", "out/n", "secret.env", "my/scratch/o", "p/q",
    ):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / ".gitignore").write_text("*.env\nscratch/\n")
    (folder / "p" / ".gitignore").write_text("q\n")
    (folder / "link").symlink_to(folder)
    os.mkfifo(folder / "fifo")  # reading it would not end
    return folder


def test_what_nodes_do_not_want_stays_behind(folder: Path) -> None:
    sent = {"a.py", "my/data/b.py", "my/runs/c.py", "my/dist_embed/d.py", ".gitignore",
            "p/.gitignore"}  # fmt: skip
    assert packed(folder, but={folder / "out"}) == sent
    assert packed(folder) == {*sent, "out/n"}
    assert packed(folder, with_package=True) == {*sent, "out/n", "dist_embed/e.py"}


def test_files_arrive_as_they_were(folder: Path, tmp_path: Path) -> None:
    (folder / "a.py").chmod(0o755)
    os.utime(folder / "a.py", (0, 0))  # before a zip file's time begins
    packed(folder)
    with ZipFile(tmp_path / "sent.zip") as archive:
        assert archive.read("a.py") == b"a.py"
        assert archive.getinfo("a.py").external_attr >> 16 & 0o777 == 0o755


def test_a_folder_that_the_server_would_refuse_is_not_packed_to_its_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_dir, "LIMIT_BYTES", 3 * 2**20)
    (folder / "zeros").write_bytes(bytes(8 * 2**20))  # small when packed
    packed(folder)
    (folder / "large").write_bytes(secrets.token_bytes(16 * 2**20))
    complaint = r"more than 3 MiB when packed.*'large' has 16\.0 MiB; a \.gitignore in"
    with pytest.raises(UserError, match=complaint):
        packed(folder)
    assert (tmp_path / "sent.zip").stat().st_size < 6 * 2**20


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--working-dir .*none: there is no such folder"):
        packed(tmp_path / "none")

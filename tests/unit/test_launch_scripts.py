"""The scripts in launch/, with programs that stand in for Python, pip and nvidia-smi."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYTHON = """#!/usr/bin/env bash
venv=$(dirname "$(dirname "$0")")
case "$*" in
*"-m venv --clear "*)
    made=${*: -1}
    rm -rf "$made"/*
    mkdir -p "$made/bin"
    cp "$0" "$made/bin/python"
    touch "$made/has-pip"
    echo venv >>"$CALLS"
    ;;
*"-m pip "*)
    echo pip >>"$CALLS"
    if [ "${PIP_USER:-${SETTINGS_USER:-0}}" != 0 ]; then
        echo "ERROR: Can not perform a '--user' install."
        exit 1
    fi
    case "$*" in
    *" -e "*)
        [ "${INTERRUPTED:-}" != before ] || { kill -9 $PPID; exit 1; }
        [ "${INTERRUPTED:-}" != after ] || kill -9 $PPID
        [ -n "${PIP_TARGET:-}" ] || cp "$TOOLS/dist-embed" "$venv/bin"
        ;;
    esac
    ;;
*"import pip"*) [ -e "$venv/has-pip" ] ;;
*cache_tag*) echo TAG ;;
esac
"""
PROGRAMS = {
    "python3": PYTHON.replace("TAG", "cpython-312"),
    "python3.11": PYTHON.replace("TAG", "cpython-311"),
    "nvidia-smi": '#!/usr/bin/env bash\n[ -n "${HAS_GPU:-}" ]\n',
    "dist-embed": '#!/usr/bin/env bash\necho "$(dirname "$(dirname "$0")") $PWD: $*"\n',
}


class Project:
    """A copy of what the scripts read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        shutil.copytree(ROOT / "launch", self.folder / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.calls = folder / "calls"
        self.tools = folder / "tools"
        self.tools.mkdir()
        for name, text in PROGRAMS.items():
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)

    def start(
        self, *arguments: str, script: str = "launch/run.sh", cwd: Path | None = None, **env: str
    ) -> subprocess.Popen[str]:
        path = f"{self.tools}:/usr/bin:/bin"
        return subprocess.Popen(
            ["bash", script, *arguments], cwd=cwd or self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": path, "TOOLS": str(self.tools), "CALLS": str(self.calls)} | env,
        )  # fmt: skip

    def venv(self, *arguments: str, **env: str) -> str:
        """The environment that a command is run in."""
        with self.start("history", "RUN", *arguments, **env) as process:
            out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        venv, _, told = out.partition(" ")
        assert told == f"{self.folder}: history RUN\n"
        return os.path.relpath(venv, self.folder)

    def refusal(self, **env: str) -> str:
        """The one line that a command ends with."""
        with self.start("history", "RUN", **env) as process:
            out, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert out == ""
        (line,) = errors.splitlines()
        return line

    def taken_calls(self) -> list[str]:
        """Environments made and calls of pip since the last time."""
        calls = self.calls.read_text().split() if self.calls.exists() else []
        self.calls.write_text("")
        return calls


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


INSTALLED = ["venv", "pip", "pip", "pip", "pip"]


def test_each_device_has_an_environment_that_stays(project: Project) -> None:
    assert project.venv(HAS_GPU="1") == ".venv-cuda"
    assert project.taken_calls() == INSTALLED
    (project.folder / ".venv-cuda" / "kept").touch()
    assert project.venv() == ".venv-cpu"
    assert project.taken_calls() == INSTALLED
    for _ in range(2):
        assert project.venv(HAS_GPU="1") == ".venv-cuda"
        assert project.venv(HAS_GPU="1", DIST_EMBED_DEVICE="cpu") == ".venv-cpu"
    assert project.taken_calls() == []
    (project.folder / "pyproject.toml").write_text("changed")
    assert project.venv(HAS_GPU="1") == ".venv-cuda"
    assert project.taken_calls() == ["pip"] * 4
    assert (project.folder / ".venv-cuda" / "kept").exists()


def test_the_environment_of_an_earlier_version_goes_on_for_its_device(project: Project) -> None:
    project.venv()
    old = project.folder / ".venv"
    (project.folder / ".venv-cpu").rename(old)
    (old / "device").write_text("cpu\n")
    project.taken_calls()
    assert project.venv() == ".venv"
    assert project.venv(HAS_GPU="1") == ".venv-cuda"
    assert project.taken_calls() == INSTALLED
    (old / "stamp").write_text("cpu elsewhere 0123\n")
    assert project.venv() == ".venv"
    assert project.taken_calls() == ["pip"] * 4
    # One that somebody else has made, and one that was never whole, are left alone.
    (old / "stamp").unlink()
    left = sorted(old.rglob("*"))
    assert project.venv() == ".venv-cpu"
    assert sorted(old.rglob("*")) == left


def test_an_environment_that_does_not_run_here_is_not_removed(project: Project) -> None:
    project.venv()
    (project.folder / ".venv-cpu" / "has-pip").unlink()  # as where its Python is another
    left = sorted((project.folder / ".venv-cpu").rglob("*"))
    assert f"{project.folder}/.venv-cpu does not run on this machine" in project.refusal()
    (project.folder / "pyproject.toml").write_text("changed")
    assert "does not run on this machine" in project.refusal()
    assert sorted((project.folder / ".venv-cpu").rglob("*")) == left
    theirs = project.folder / ".venv-cuda"
    (theirs / "bin").mkdir(parents=True)
    line = project.refusal(DIST_EMBED_DEVICE="cuda")
    assert f"{theirs} was not made by launch/setup.sh" in line
    # Nor where one of ours had failed before.
    theirs.with_name(".venv-cuda.log").touch()
    shutil.copy(project.tools / "dist-embed", theirs / "bin")
    assert f"{theirs} does not run on this machine" in project.refusal(DIST_EMBED_DEVICE="cuda")
    assert (theirs / "bin" / "dist-embed").exists()


def test_what_an_interrupted_set_up_has_left_is_made_whole(project: Project) -> None:
    venv = project.folder / ".venv-cpu"
    for interrupted, calls in (("before", INSTALLED), ("after", ["pip"] * 4)):
        shutil.rmtree(venv, ignore_errors=True)
        with project.start(INTERRUPTED=interrupted) as process:
            process.communicate(timeout=60)
        assert process.returncode == -9
        (venv / "half").touch()
        project.taken_calls()
        assert project.venv() == ".venv-cpu"
        assert project.taken_calls() == calls
        assert (venv / "half").exists() == (interrupted == "after")
    # While it was brought up to date: what pip had not finished is installed again.
    whole, half = (venv / f"lib/python3.12/site-packages/{x}.dist-info" for x in ("a-1", "b-2"))
    for folder, name in ((whole, "RECORD"), (half, "METADATA")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    settings = project.folder / "pyproject.toml"
    settings.write_text("changed")
    assert project.venv() == ".venv-cpu"
    assert whole.exists()
    assert not half.exists()
    # Nor is it what it was before, though the files are.
    (project.folder / ".venv-cpu").rename(project.folder / ".venv")
    settings.write_text("changed again")
    with project.start(INTERRUPTED="before") as process:
        process.communicate(timeout=60)
    settings.write_text("changed")
    project.taken_calls()
    assert project.venv() == ".venv"
    assert project.taken_calls() == calls


def test_two_set_ups_at_once_make_one_environment(project: Project) -> None:
    with (project.folder / ".venv-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        both = [project.start("history") for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            assert process.stderr.readline() == f"waiting for another set-up in {project.folder}\n"
    told = sorted(process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert project.taken_calls() == INSTALLED
    assert told[0] == ""
    assert told[1].startswith(f"setting up {project.folder}/.venv-cpu (once;")


def test_what_another_set_up_has_made_meanwhile_is_looked_at(project: Project) -> None:
    project.venv()
    venv, elsewhere = (project.folder / name for name in (".venv-cpu", "elsewhere"))
    venv.rename(elsewhere)
    with (project.folder / ".venv-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = project.start(PYTHON="python3.11")
        assert process.stderr is not None
        process.stderr.readline()
        elsewhere.rename(venv)
    assert "is not the Python of" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def test_settings_of_pip_do_not_lead_elsewhere(project: Project) -> None:
    assert project.venv(PIP_USER="1", SETTINGS_USER="1") == ".venv-cpu"
    assert project.venv(DIST_EMBED_DEVICE="cuda", SETTINGS_USER="1") == ".venv-cuda"
    shutil.rmtree(project.folder / ".venv-cpu")
    with project.start(PIP_TARGET="elsewhere") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "its settings name another place" in errors.splitlines()[-1]


def test_a_python_is_the_environments_or_refused(project: Project) -> None:
    assert project.venv(PYTHON="python3.11") == ".venv-cpu"
    project.taken_calls()
    assert project.venv() == project.venv(PYTHON="python3.11") == ".venv-cpu"
    line = f"PYTHON=python3 is not the Python of {project.folder}/.venv-cpu (cpython-311)"
    assert line in project.refusal(PYTHON="python3")
    assert "PYTHON=nowhere is not the Python of" in project.refusal(PYTHON="nowhere")
    assert project.taken_calls() == []


def test_the_scripts_find_their_folder(project: Project, tmp_path: Path) -> None:
    # An exported CDPATH, under which another folder has such a name.
    (tmp_path / "other" / "launch").mkdir(parents=True)
    assert project.venv(CDPATH=str(tmp_path / "other")) == ".venv-cpu"
    link = tmp_path / "bin" / "dist-embed.sh"
    link.parent.mkdir()
    link.symlink_to("../project/launch/setup.sh")
    for script in ("launch/setup.sh", str(link)):
        with project.start(script=script, CDPATH=str(tmp_path / "other")) as process:
            assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    link.unlink()
    link.symlink_to("../project/launch/run.sh")
    with project.start("x", script=str(link), cwd=tmp_path / "bin") as process:
        out, errors = process.communicate(timeout=60)
    assert out == f"{project.folder}/.venv-cpu {link.parent}: x\n", errors


def test_a_given_environment_is_used_as_it_is(project: Project) -> None:
    line = f"DIST_EMBED_VENV={project.folder}/mine: no bin/dist-embed there"
    assert project.refusal(DIST_EMBED_VENV="mine") == line
    (project.folder / "mine" / "bin").mkdir(parents=True)
    shutil.copy(project.tools / "dist-embed", project.folder / "mine" / "bin")
    assert project.venv(DIST_EMBED_VENV="mine") == "mine"
    assert project.venv(DIST_EMBED_VENV=f"{project.folder}/mine") == "mine"
    assert project.taken_calls() == []
    assert project.refusal(DIST_EMBED_DEVICE="tpu").startswith("DIST_EMBED_DEVICE=tpu is not")

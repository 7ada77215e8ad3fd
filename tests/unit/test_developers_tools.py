"""What somebody who changes the code runs: launch/test.sh and the hooks of pre-commit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOKS: dict[str, Any] = {
    hook["id"]: hook
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]
}


def stand_in(folder: Path, name: str) -> None:
    program = folder / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    anew = "${PYTHONDONTWRITEBYTECODE:+ and compiles anew}"
    program.write_text(f"#!/usr/bin/env bash\necho {name} $*{anew}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("given", "to_pytest"),
    [
        ([], "-m not heavy"),
        (["-k", "x"], "-m not heavy -k x"),
        (["--quick"], "-m not heavy tests/unit"),
        (["--quick", "-x"], "-m not heavy tests/unit -x"),
        (["--all", "tests/gpu"], "tests/gpu"),
    ],
)
def test_what_is_checked_before_which_tests(
    given: list[str], to_pytest: str, tmp_path: Path
) -> None:
    for name in ("dist-embed", "ruff", "mypy", "python"):
        stand_in(tmp_path, name)
    done = subprocess.run(
        ["bash", "launch/test.sh", *given], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "DIST_EMBED_VENV": str(tmp_path),
             "PYTHONDONTWRITEBYTECODE": "1"}, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "ruff check .", "ruff format --check .", "mypy",
        f"python -m pytest -n 2 --dist loadfile --no-loadscope-reorder {to_pytest}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hook", "text", "code", "left"),
    [
        ("ruff-check", "import os\n", 1, "import os\n"),
        ("ruff-check", '"""Fine."""\n', 0, '"""Fine."""\n'),
        ("ruff-format", "x = { 1:2 }\n", 0, "x = {1: 2}\n"),
    ],
)
def test_hooks_run_the_pinned_tools_on_the_files_given(
    hook: str, text: str, code: int, left: str, tmp_path: Path
) -> None:
    file = tmp_path / "one.py"
    file.write_text(text)
    command = f'{HOOKS[hook]["entry"]} "{file}"'  # as pre-commit calls it: words, then files
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "DIST_EMBED_VENV": sys.prefix},
    )  # fmt: skip
    assert (done.returncode, file.read_text()) == (code, left), done.stderr


def test_types_are_checked_of_the_whole_project(tmp_path: Path) -> None:
    for name in ("dist-embed", "mypy"):
        stand_in(tmp_path, name)
    assert HOOKS["mypy"]["pass_filenames"] is False
    done = subprocess.run(
        ["bash", "-c", HOOKS["mypy"]["entry"]], cwd=ROOT, capture_output=True, text=True,
        check=True, env={"PATH": "/usr/bin:/bin", "DIST_EMBED_VENV": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.stdout == "mypy\n"


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_templates_of_issues_can_be_read(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert set(found) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(found)
    for field in found["body"]:
        assert field["type"] in ("textarea", "input", "markdown", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
    ids = [field["id"] for field in found["body"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("user", [0, 1])
@pytest.mark.parametrize("apt", ["install", "exit 100"])
def test_ci_goes_on_without_packages_of_the_system(user: int, apt: str, tmp_path: Path) -> None:
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in ("bash", "dirname", "readlink", "timeout", "tail", "touch", "chmod"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    # Installed it is once the second call, without the network, has been made.
    # Its own package then has a program's name; Slurm's two come with it.
    says = (
        f"echo $* >>{calls}\ncase $* in\n"
        f"*munge*--no-download) made='slurmctld munged' ;;\n"
        f"*chromium*--no-download) made=chromium ;;\nesac\n"
        f"for name in $made; do touch {programs}/$name; chmod +x {programs}/$name; done"
    )
    told = "echo no mirror\nexit 100"
    made = f"touch {programs}/azurite-blob; chmod +x {programs}/azurite-blob"
    for name, text in (
        ("id", f"echo {user}"), ("apt-get", says if apt == "install" else told),
        ("npm", made if apt == "install" else told), ("python", "" if apt == "install" else told),
    ):  # fmt: skip
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    for name in (".ci/run", "launch/test.sh"):
        (tmp_path / name).parent.mkdir()
    script = (ROOT / ".ci" / "run").read_text()
    (tmp_path / ".ci" / "run").write_text(script.replace("/usr/sbin", str(programs)))
    (tmp_path / "launch" / "test.sh").write_text("echo tests\nexit 3\n")
    (tmp_path / "launch" / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\n')
    done = subprocess.run(
        ["/usr/bin/bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": str(programs)}, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("tests\n", 3), done.stderr
    wanted = {"Slurm": "slurm-wlm munge", "Chromium": "chromium fonts-dejavu-core"}
    if user == 0 and apt == "install":
        assert done.stderr == ""
        install = "-qq -y install --no-install-recommends"
        assert calls.read_text().splitlines() == [
            call
            for packages in wanted.values()
            for call in (
                "-qq update", f"{install} {packages} --download-only",
                f"{install} {packages} --no-download",
            )
        ]  # fmt: skip
    else:
        assert done.stderr == "".join(
            ("no mirror\n" if user == 0 else "")
            + f"{name} could not be installed here ({packages}): its tests are skipped\n"
            for name, packages in wanted.items()
        ) + (
            ""
            if apt == "install"
            else (
                "Azurite could not be installed here (npm's azurite): its tests are skipped\n"
                "clients of stores could not be installed: their tests are skipped\n"
            )
        )
        assert not calls.exists()


def test_ci_ends_with_the_reason_where_its_environment_cannot_be_made(tmp_path: Path) -> None:
    for name, text in {
        ".ci/run": (ROOT / ".ci" / "run").read_text(),
        "launch/setup.sh": "set -euo pipefail\necho no torch >&2\nfalse\necho went on\n",
        "launch/test.sh": "echo tests\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dirname", "readlink"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    for name in ("slurmctld", "munged", "chromium", "azurite-blob"):  # nothing is to be installed
        (programs / name).symlink_to("/usr/bin/true")
    done = subprocess.run(
        ["/usr/bin/bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": str(programs)}, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "no torch\n", 1)

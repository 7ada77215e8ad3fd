"""launch/Dockerfile, without Docker: its steps, in a folder instead of an image."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dist_embed.jobs import kubernetes

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
# Makes environments of copies of itself, and tells what it was called with.
PYTHON = """#!/bin/sh
echo "$0 $*" >>"$CALLS"
case "$*" in
*"-m venv "*)
    for made; do :; done
    mkdir -p "$made/bin"
    cp "$0" "$made/bin/python"
    ;;
*" -e "*) printf '#!/bin/sh\\n' >"${0%/*}/dist-embed"; chmod +x "${0%/*}/dist-embed" ;;
esac
"""


def steps() -> list[tuple[str, str]]:
    """Instructions and what follows each."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in whole)]


def of(instruction: str) -> list[str]:
    return [rest for word, rest in steps() if word == instruction]


def build(folder: Path, device: str, **environment: str) -> Path:
    """Do as a build does; returns the folder in which it installs."""
    place = folder
    for word, rest in steps():
        if word == "WORKDIR":
            place = folder / rest.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            copy(sources, place / target, into=target.endswith("/"))
        elif word == "RUN":
            subprocess.run(
                ["/bin/sh", "-c", rest], cwd=place, check=True, capture_output=True,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "DEVICE": device, **environment},
            )  # fmt: skip
    return folder / of("WORKDIR")[0].lstrip("/")


def copy(sources: list[str], target: Path, *, into: bool) -> None:
    for source in sources:
        assert not left_out(source), source
        if (ROOT / source).is_dir():
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, target, ignore=without, dirs_exist_ok=True)
        else:
            where = target / Path(source).name if into else target
            where.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, where)


def left_out(path: str) -> bool:
    """Whether .dockerignore has it: the last line that speaks of it, or of a folder above."""
    found = False
    above = [path, *(str(folder) for folder in Path(path).parents)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and any(fnmatch.fnmatch(name, pattern) for name in above):
            found = not line.startswith("!")
    return found


def command_path(folder: Path) -> str:
    """PATH as the image has it, with the place of ``folder`` in it."""
    (values,) = of("ENV")
    found = re.search(r"PATH=(\S+?):", values)
    assert found
    return str(folder / found[1].lstrip("/"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_its_steps_make_the_command_that_its_path_finds(device: str, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").write_text(PYTHON)
    (tools / "python3").chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}
    build(tmp_path, device, **environment)
    found = Path(command_path(tmp_path).replace("${DEVICE}", device)) / "dist-embed"
    assert os.access(found, os.X_OK)
    calls = (tmp_path / "calls").read_text()
    assert f"-r launch/constraints/{device}.txt" in calls
    assert "-m compileall -q dist_embed" in calls.splitlines()[-1]


def test_nothing_is_installed_but_by_the_set_up() -> None:
    installs, compiles = of("RUN")
    assert re.fullmatch(r"(\w+=\S+ )*bash launch/setup\.sh", installs)
    assert re.fullmatch(r"\S+/python -m compileall -q dist_embed", compiles)


def test_it_is_run_by_the_user_that_kubernetes_is_told_and_not_by_a_shell() -> None:
    assert of("USER") == [f"{kubernetes.USER}:{kubernetes.USER}"]
    assert json.loads(of("ENTRYPOINT")[0]) == ["dist-embed"]


def test_nothing_else_is_sent_to_a_build() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("no repository of git here")
    sent = {path.split("/")[0] for path in listed if not left_out(path)}
    assert sent == {"pyproject.toml", "README.md", "LICENSE", "launch", "dist_embed"}


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (the extra `dev` has it)")
def test_a_linter_has_nothing_against_it() -> None:
    def said_of(text: str) -> str:
        assert HADOLINT is not None
        done = subprocess.run(
            [HADOLINT, "-"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout

    text = DOCKERFILE.read_text()
    assert said_of(text) == ""
    assert "DL3002" in said_of(text.replace("USER 1000:1000", "USER root"))


@pytest.mark.heavy
@pytest.mark.timeout(2400)
def test_its_steps_install_what_any_user_can_run() -> None:
    program = "import torch, torchrec, fbgemm_gpu, ray; from dist_embed.cli.main import main; main"
    another = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    with tempfile.TemporaryDirectory(prefix="image-") as name:  # two GiB
        folder = Path(name)
        folder.chmod(0o755)
        python = build(folder, "cpu", HOME=name) / ".venv-cpu" / "bin" / "python"
        for words in ([python, "-c", program], [python.with_name("dist-embed"), "--version"]):
            subprocess.run(
                [*(another if os.getuid() == 0 else []), *words], cwd="/", check=True, timeout=300,
                env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "USER": "dist_embed"},
            )  # fmt: skip

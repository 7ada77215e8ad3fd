"""Programs in processes of their own that need not each import what takes long."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen

LIMIT_SECONDS = 300.0
ROOT = Path(__file__).parents[2]
_FORKS = """
import json, os, sys
exec(sys.argv[1])
for line in sys.stdin:
    folder, cwd, environment, program = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
        os.chdir(cwd)
        os.environ.update(environment)
        exec(program, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Copies:
    """One Python of which a copy runs each program, for the length of a ``with`` block.

    Args:
        imports: statements that it runs before it is copied.
        folder: for what the programs say; empty.
        environment: of it, and so of its copies.
    """

    def __init__(
        self, imports: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._imports = imports
        self._folder = folder
        self._count = 0
        # In a session of their own, so that none outlives the one Python.
        self._process = Popen(
            [sys.executable, "-c", _FORKS, imports], cwd=ROOT, env=environment, stdin=PIPE,
            stdout=PIPE, start_new_session=True, bufsize=0,
        )  # fmt: skip

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def run(
        self, program: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]:
        """Run a program and wait for it, at most `LIMIT_SECONDS`: an error tells then what it has
        said.

        Args:
            environment: beside that of the one Python.
        """
        folder = self._folder / str(self._count)
        self._count += 1
        folder.mkdir()
        given = json.dumps([str(folder), str(cwd), dict(environment or {}), program])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: see below
            self._process.stdin.write(f"{given}\n".encode())
        answered, _, _ = select.select([self._process.stdout], [], [], LIMIT_SECONDS)
        code = self._process.stdout.readline() if answered else b""
        said = {name: text(folder / name) for name in ("out", "err")}
        if not answered:
            told = (f"{folder / name}:\n{said[name][-4000:]}" for name in said)
            raise AssertionError("\n".join([f"not done in {LIMIT_SECONDS} s", *told]))
        assert code, f"{self._imports!r}: ended with code {self._process.wait()}"
        return CompletedProcess(program, int(code), said["out"], said["err"])


def text(path: Path) -> str:
    """Of a file, which may not be there yet."""
    return path.read_text() if path.exists() else ""


def run_apart(imports: str, programs: Sequence[str], folder: Path) -> list[CompletedProcess[str]]:
    """Run each program in a copy of one Python, in the project's folder (see `Copies`)."""
    with Copies(imports, folder) as python:
        return [python.run(program) for program in programs]

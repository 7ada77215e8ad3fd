"""Programs that run apart end in time, and tell why they did not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from select import select
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.unit import run_apart as module

SAYS_AND_STAYS = """
import os, sys, time
print("here", file=sys.stderr, flush=True)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_what_is_not_done_in_time_is_ended_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = tmp_path / "1/out"

    def impatient(read: list[Any], *rest: Any) -> tuple[list[Any], list[Any], list[Any]]:
        if not said.parent.exists():
            return select(read, *rest)
        while not (said.exists() and said.read_text().endswith("\n")):
            time.sleep(0.01)
        return [], [], []

    monkeypatch.setattr(module, "select", SimpleNamespace(select=impatient))
    with pytest.raises(AssertionError, match=r"^not done in .*\n.*1/out:\n\d+\n\n.*/err:\nhere\n"):
        module.run_apart("", ["print('done')", SAYS_AND_STAYS], tmp_path)
    until = time.monotonic() + 30  # it is a grandchild: whoever inherits it waits for it
    while is_running(int(said.read_text())):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_import_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'import no_such_thing': ended with code 1"):
        module.run_apart("import no_such_thing", ["print('never')"], tmp_path)


def test_a_program_has_its_own_folder_and_environment(tmp_path: Path) -> None:
    told, there = tmp_path / "told", tmp_path / "there"
    for folder in (told, there):
        folder.mkdir()
    program = "import os, sys; print(os.getcwd(), os.environ.get('ALL'), os.environ.get('ONE'))"
    with module.Copies("import os", told, {**os.environ, "ALL": "all's"}) as python:
        first = python.run(program, there, {"ONE": "its own"})
        second = python.run(f"{program}; sys.exit(3)")
    assert (first.returncode, first.stdout) == (0, f"{there} all's its own\n")
    assert (second.returncode, second.stdout) == (3, f"{module.ROOT} all's None\n")


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

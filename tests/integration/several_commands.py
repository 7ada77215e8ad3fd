"""Commands one after the other outside the tests' process, whose imports are made once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.unit.run_apart import Copies

_ALL = """
import json, sys
from dist_embed.cli.main import main
for words in json.load(sys.stdin):
    if code := main(words):
        sys.exit(code)
"""
_ONE = """
import sys
from dist_embed.cli.main import main
sys.argv[1:] = {arguments!r}
sys.exit(main())
"""
Call = Callable[..., "CompletedProcess[str]"]


def in_one_process(
    *commands: list[str], environment: Mapping[str, str] | None = None, code: int = 0
) -> CompletedProcess[str]:
    """Run commands in a process of their own, with one server that their workers are forked from;
    it ends with the first that fails, and must end with ``code``.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ALL], input=json.dumps(commands), capture_output=True, text=True,
        timeout=500, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


class Commands(Copies):
    """Each in a process of its own, for a ``with`` block: where what a command imports is not the
    point.
    """

    def call(self, *arguments: str, cwd: Path, code: int = 0) -> CompletedProcess[str]:
        """Run ``dist-embed`` in a folder; it must end with ``code``."""
        done = self.run(_ONE.format(arguments=list(arguments)), cwd)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done


def of_jobs(imports: str) -> tuple[Any, Any]:
    """The fixtures ``commands`` and ``call`` of a module whose ``cluster`` is an environment: a
    `Call` runs a command there, in the test's folder; ``imports`` are made once for all.
    """

    @pytest.fixture(scope="module")
    def commands(
        cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Commands]:
        made = f"import dist_embed.config.load, dist_embed.run.metrics, {imports}"
        with Commands(made, tmp_path_factory.mktemp("said"), cluster) as found:
            yield found

    @pytest.fixture
    def call(commands: Commands, tmp_path: Path) -> Call:
        return partial(commands.call, cwd=tmp_path)

    return commands, call

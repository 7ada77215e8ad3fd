from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dist_embed.cli.main import main
from tests.forks import IMPORTED
from tests.unit.small_corpus import one_is_this_process


class Done(NamedTuple):
    """What a command has said."""

    stdout: str
    stderr: str


Command = Callable[..., Done]

TINY = {
    "data": {"synthetic": {"sentences": 240, "held_out": 20, "nouns": 12, "verbs": 6,
                           "adjectives": 4}, "num_processes": 1},
    "embedding": {"width": 16},
    "model": {"width": 16, "feed_forward": 16, "heads": 2, "encoder_layers": 1,
              "decoder_layers": 1, "share_embeddings": "all", "dropout": 0.2},
    "train": {"max_steps": 8, "batch_tokens": 400, "log_every": 1, "evaluate_every": 4,
              "precision": "fp32"},
    "data.max_tokens": 100,
    "search": {"beam": 2},
    "checkpoint": {"every_steps": 4},
    "cluster": {"launcher": "local", "num_workers": 2, "timeout_seconds": 60.0,
                "device": "cpu", "threads_per_worker": 1},
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/integration" in str(item.path):
            item.add_marker(pytest.mark.integration)
            # Whole commands, several processes each: minutes on a busy machine.
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """See `tiny_config`."""
    return tiny_config(tmp_path)


def tiny_config(folder: Path) -> str:
    """A configuration file of a run that takes a few seconds; the run lies beside it."""
    values = {key: value for key, value in TINY.items() if "." not in key}
    values["data"] = {**TINY["data"], "max_tokens": TINY["data.max_tokens"]}  # type: ignore[dict-item]
    values["run"] = {"uri": str(folder / "run")}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def as_process() -> Command:
    """Runs the command as a user does, in a process of its own, which imports all it needs and
    starts the server that workers are forked from: for what only that can show. `code` is the
    exit code it must end with.
    """

    def run(*arguments: str, code: int = 0, text: str | None = None) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "dist_embed.cli.main", *arguments],
            capture_output=True, text=True, input=text, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Done(done.stdout, done.stderr)

    return run


@pytest.fixture
def dist_embed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command as `as_process` does, but in this process; its workers are forked from the
    tests' server, with the environment and in the folder that that was started with.

    That has imported more, and hears signals: tests end by them what they fork from it. What a
    server of the command's own imports, and that it is deaf, is for `as_process`, and for
    tests/unit/test_fork_server.py; what the screen is kept free of for `as_process` alone.
    """
    # Of this process, which is the tests'.
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    monkeypatch.setattr("dist_embed.cluster.fork_server._IMPORTED", IMPORTED)
    monkeypatch.setattr("dist_embed.cluster.fork_server.deaf_children", nullcontext)

    def run(*arguments: str, code: int = 0, text: str | None = None) -> Done:
        given = io.TextIOWrapper(io.BytesIO((text or "").encode()))
        monkeypatch.setattr(sys, "stdin", given)
        capsys.readouterr()
        try:
            with one_is_this_process(1):
                ended: Any = main(list(arguments))
        except SystemExit as exc:  # by argparse
            ended = exc.code
        said = Done(*capsys.readouterr())
        assert ended == code, f"exit code {ended}\n{said.stdout}\n{said.stderr}"
        return said

    return run


@pytest.fixture
def refused(dist_embed: Command) -> Callable[..., str]:
    """Runs the command, which must refuse (exit code 2); gives what it complains of."""

    def run(*arguments: str, text: str | None = None) -> str:
        said = dist_embed(*arguments, code=2, text=text).stderr
        assert "Traceback" not in said
        return said

    return run

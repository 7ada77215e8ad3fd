from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dist_embed.cli.main import main

Command = Callable[..., "subprocess.CompletedProcess[str]"]

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
                "device": "cpu"},
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/integration" in str(item.path):
            item.add_marker(pytest.mark.integration)
            # Whole commands, several processes each: minutes on a busy machine.
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration file of a run that takes a few seconds; the run lies beside it."""
    values = {key: value for key, value in TINY.items() if "." not in key}
    values["data"] = {**TINY["data"], "max_tokens": TINY["data.max_tokens"]}  # type: ignore[dict-item]
    values["run"] = {"uri": str(tmp_path / "run")}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def dist_embed() -> Command:
    """Runs the command; `code` is the exit code it must end with."""

    def run(*arguments: str, code: int = 0, text: str | None = None, **environment: str):  # type: ignore[no-untyped-def]
        done = subprocess.run(
            [sys.executable, "-m", "dist_embed.cli.main", *arguments],
            capture_output=True, text=True, input=text, timeout=300,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs the command in this process, for what is refused (exit code 2) before any worker starts;
    gives what it complains of. A process of its own takes seconds to import what it needs.
    """
    # Of this process, which is the tests'.
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    monkeypatch.setattr("dist_embed.cluster.fork_server.start_ahead", lambda device: None)

    def run(*arguments: str) -> str:
        try:
            code = main(list(arguments))
        except SystemExit as exc:  # by argparse
            code = exc.code
        said = capsys.readouterr()
        assert code == 2, f"exit code {code}\n{said.out}\n{said.err}"
        assert "Traceback" not in said.err
        return said.err

    return run

"""Targets in which nothing can be written: exit code 1, and said before the work."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dist_embed.bench import gpu
from dist_embed.bench.report import write_json
from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.cli.main import build_parser, main
from dist_embed.errors import NotWritable, StorageError
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ObjectStore
from tests.unit.small_run import small_run, word_tokenizer

NOWHERE = "/proc/none"  # not even root makes files in /proc
# By command what else it needs; what is made of a target that each has.
TARGETS = {
    "evaluate": "RUN --output /proc/x",
    "translate": "RUN --output /proc/x",
    "compare": "RUN --output /proc/x",
    "plot": "RUN --output /proc/x.svg",
    "plan": "CONFIG --output /proc/x",
    "report": "RUN --output /proc/x.html",
    "study": "STUDY --output /proc/x.md",
    "export translator": "RUN --output /proc/x",
    "export embeddings": "RUN --format glove --output /proc/x",
    "export checkpoint": "RUN --output /proc/x",
    "export projector": "RUN --output /proc/x/y",
}
OTHERS = [
    "train CONFIG run.uri=/proc/new/run", "train CONFIG run.uri=/proc/self/run",
    "study STUDY_THERE", "report RUN --charts /proc", "prepare CONFIG data.uri=/proc/x",
    "bench step CONFIG --profile /proc/x", "bench plan --machine-file /proc/x",
    "bench balance --plot /proc/x.svg",
]  # fmt: skip


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, Any]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, one in action.choices.items():
                yield from parsers(one, f"{name} {below}".strip())


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    for name in (
        "cluster.launch.launch", "explore.table.RunTable",
        "export.ctranslate2_model.RunTable", "data.preparation._prepare_anew",
        "study.run._made", "report.report.report", "planning.plan",
        "checkpoint.export.export_checkpoint", "bench.calibrate.calibrate",
        "bench.balance.expected_of_shards",
    ):  # fmt: skip
        monkeypatch.setattr(f"dist_embed.{name}", work)
    monkeypatch.setattr("dist_embed.cluster.fork_server.start_ahead", lambda device: None)


@pytest.fixture
def words_of(tmp_path: Path) -> dict[str, str]:
    """What stands in commands for files that there are."""
    tokenizer = word_tokenizer(["a", "b"])
    run = small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer}, {"shared": torch.zeros(6, 4)},
        share="all",
    )  # fmt: skip
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({
        "run": {"uri": str(tmp_path / "new")}, "train": {"max_steps": 1},
        "data": {"synthetic": {"sentences": 30, "held_out": 4}, "num_processes": 1},
    }))  # fmt: skip
    found = {"RUN": run, "CONFIG": str(config)}
    for name, folder in (("STUDY", str(tmp_path / "study")), ("STUDY_THERE", NOWHERE)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({
            "kind": "scaling", "title": "t", "question": "q", "folder": folder, "base": str(config),
            "grid": {"workers": [1]},
        }))  # fmt: skip
        found[name] = str(path)
    return found


def test_every_command_with_an_output_is_known() -> None:
    with_output = {
        name for name, parser in parsers(build_parser())
        if any("--output" in action.option_strings for action in parser._actions)
        and not name.startswith("bench ")
    }  # fmt: skip
    assert with_output == set(TARGETS)


@pytest.mark.parametrize("command", [*(f"{k} {v}" for k, v in TARGETS.items()), *OTHERS])
def test_a_target_is_tried_before_the_work(
    no_work: None, words_of: dict[str, str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words_of.get(word, word) for word in command.split()]) == 1
    assert "nothing can be written there" in capsys.readouterr().err


def test_every_measurement_tries_its_output_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        name: parser for name, parser in parsers(build_parser()) if name.startswith("bench ")
    }  # fmt: skip
    assert len(kinds) > 15
    for parser in kinds.values():
        with pytest.raises(NotWritable, match=r"^--output: '/proc/x' is not allowed"):
            parser.get_default("call")(argparse.Namespace(output="/proc/x"))


def test_figures_are_written_whole_and_a_full_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_json("/dev/full", "command", "cpu", {"a": 1})
    path = tmp_path / "x.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        write_json(str(path), "command", "cpu", {"a": object()})
    assert path.read_text() == "before"
    write_json(str(path), "command", "cpu", {"a": 1})
    assert json.loads(path.read_text())["figures"] == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_the_gpu_s_figures_stay_until_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--device", "cpu", "--output", NOWHERE], []) == 1
    assert "--output: nothing can be written there" in capsys.readouterr().err
    path = tmp_path / "figures.json"
    gpu._put(path, "before")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        gpu._put(path, "after")
    assert path.read_text() == "before"


def test_what_a_whole_file_is_written_by_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    with (
        pytest.raises(OSError, match=f"No space left on device: '{path}'"),
        storage.whole_file(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # os.posix_fallocate's


@pytest.mark.parametrize(
    ("error", "code"),
    [(PermissionError(errno.EACCES, "Permission denied", "/x"), 1),
     (StorageError("cannot remove"), 2)],
)  # fmt: skip
def test_another_user_s_checkpoints_are_not_pruned(
    words_of: dict[str, str], error: Exception, code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)
    run = words_of["RUN"]
    open_checkpoints(run).put("objects/step-000000009-20200101T000000Z-aaaaaaaa/chunk", [b"x"])
    monkeypatch.setattr(ObjectStore, "remove_folder", refuse)
    assert main(["checkpoint", "prune", run, "--leftover-hours", "0"]) == code
    said = capsys.readouterr().err
    assert (f"{run} cannot be pruned: [Errno 13] Permission denied: '/x'" in said) == (code == 1)

"""Whole trainings that must not end well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.cluster.local import launch_local
from dist_embed.config.schema import Config
from dist_embed.data.preparation import ensure_data
from dist_embed.errors import UserError
from dist_embed.observe.events import Emit
from dist_embed.training import train as training
from dist_embed.training import worker
from dist_embed.training.tasks import Train
from tests.stores.killing import configuration
from tests.unit.small_corpus import one_is_this_process


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data"))
    with one_is_this_process(1):
        ensure_data(configuration(uri, uri), lambda line: None)
    return uri


def train_and_remove(config: Config, function: str, folder: str, emit: Emit) -> Any:
    """Train; on worker 0 the folder is removed after a function of the training's module."""
    original = getattr(training, function)

    def patched(*args: Any, **more: Any) -> Any:
        value = original(*args, **more)
        if args[0].group.is_first if function == "build_saver" else more["metrics"]:
            shutil.rmtree(folder)
        return value

    setattr(training, function, patched)
    return worker.run_worker(Train(), config, emit)


def run(target: Callable[..., Any], config: Config, *arguments: str) -> list[str]:
    lines: list[str] = []
    launch_local(
        target, (config, *arguments), num_workers=2, log_folder="",
        on_event=lambda event: lines.append(str(event.get("text"))),
    )  # fmt: skip
    return lines


@pytest.mark.parametrize("function", ["build_saver", "train_loop"])
def test_a_run_whose_folder_is_removed_ends_with_an_error(
    function: str, data_uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=rf"{folder} was removed, moved or replaced while the run"):
        run(train_and_remove, configuration(data_uri, str(folder)), function, str(folder))
    assert not (folder / "checkpoints").exists()


def train(config: Config, emit: Emit) -> Any:
    return worker.run_worker(Train(), config, emit)


def test_a_run_whose_model_is_ruined_ends_with_an_error_and_is_not_saved(
    data_uri: str, tmp_path: Path
) -> None:
    values = configuration(data_uri, str(tmp_path / "run")).model_dump()
    values["embedding"] |= {"eps": 1e-300, "learning_rate": 1e6}
    values["train"] |= {"learning_rate": 1e6, "max_steps": 3, "evaluate_every": 3}
    values["checkpoint"]["every_steps"] = 3
    with pytest.raises(UserError, match="step 3: the validation loss is nan; the model is of no"):
        run(train, Config.model_validate(values))
    assert list_steps(str(tmp_path / "run")) == []

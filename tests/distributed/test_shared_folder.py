"""Workers whose machines do not share the run's folder, or may not write there."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.group import Group
from dist_embed.run.shared import check_shared
from dist_embed.storage import uri as storage
from dist_embed.training.tasks import Train
from dist_embed.training.train import train_task
from dist_embed.training.worker import Context
from tests.distributed.configured import DATA, Values, merged
from tests.distributed.pool import RemoteError, WorkerPool

HOST = re.escape(socket.gethostname())
WANTED = "run.uri must be a URL, or a folder that all nodes share and where each may write"


def check_each(group: Group, *run_uris: str) -> None:
    """Each worker its own."""
    check_shared(run_uris[group.rank], group)


def test_a_folder_that_all_share_passes_and_nothing_is_left_there(
    workers: WorkerPool, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    workers.run(3, check_each, run, run, run)
    assert storage.names_in(run) == []
    workers.run(1, check_each, "memory://run")


@pytest.mark.parametrize("own", ["{}/here", "memory://run"])
def test_a_folder_that_a_worker_has_to_itself_is_refused_on_all(
    workers: WorkerPool, tmp_path: Path, own: str
) -> None:
    """Also one that is writable, as what lies in each process's memory."""
    run = str(tmp_path / "run") if own.startswith("{") else own
    with pytest.raises(RemoteError) as told:
        workers.run(2, check_each, run, own.format(tmp_path))
    wanted = WANTED if own.startswith("{") else "run.uri must lead all nodes to one place: .*"
    said = rf"worker 1 on {HOST} does not see what worker 0 has written to .*: {wanted}"
    assert len(re.findall(rf"(?m)^dist_embed\S*UserError: {said}$", str(told.value))) == 2
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_that_a_worker_cannot_write_to_is_refused_on_all(
    workers: WorkerPool, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    with pytest.raises(RemoteError) as told:
        workers.run(2, check_each, run, "/proc/none")
    said = rf"worker 1 on {HOST}: run\.uri: '/proc/none' is not allowed: .*; {WANTED}"
    assert len(re.findall(rf"(?m)^dist_embed\S*NotWritable: {said}$", str(told.value))) == 2
    assert storage.names_in(run) == []


def train_each_in_its_own(group: Group, values: Values, folder: str) -> None:
    config = config_from_dict(merged(values, {"run": {"uri": f"{folder}/{group.rank}"}}))
    train_task(Context(config, group, silent_reporter()), Train())


def test_a_training_looks_before_it_makes_anything(
    workers: WorkerPool, tmp_path: Path, data_uri: str
) -> None:
    values = merged(DATA, {"data": {"uri": data_uri}, "train": {"max_steps": 1}})
    with pytest.raises(RemoteError, match=rf"worker 1 on {HOST} does not see what worker 0 has"):
        workers.run(2, train_each_in_its_own, values, str(tmp_path))
    assert not list(tmp_path.glob("*/*"))

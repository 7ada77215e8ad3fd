"""Logs of a run's workers, brought to a run at a URL and shown."""

from __future__ import annotations

import logging
import threading
import uuid
from pathlib import Path

import pytest
from torch import Tensor, ones

from dist_embed.cli.main import main
from dist_embed.errors import StoreUnavailable, UserError
from dist_embed.run import logs
from dist_embed.run.logs import is_run, read_logs, uploaded
from dist_embed.storage import uri as storage
from tests.unit.small_run import small_run, word_tokenizer


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "worker-3.log").write_bytes(b"begun\n")
    return tmp_path / "worker-3.log"


@pytest.fixture
def at_a_url() -> str:
    return f"memory://logs-{uuid.uuid4().hex}"


def test_a_log_is_uploaded_as_it_grows_and_at_the_end(
    log: Path, at_a_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()
    write = storage.write_bytes

    def writing(uri: str, data: bytes) -> None:
        write(uri, data)
        written.set()

    monkeypatch.setattr(logs.storage, "write_bytes", writing)
    monkeypatch.setattr(logs, "EVERY_SECONDS", 0.01)
    target = f"{at_a_url}/logs/worker-3.log"
    with uploaded(log, at_a_url):
        assert written.wait(30)
        assert storage.read_bytes(target) == logs._name_of(log) + b"begun\n"
        monkeypatch.setattr(logs, "EVERY_SECONDS", 100.0)
        with log.open("ab") as file:
            file.write(b"ended\n")
    assert storage.read_bytes(target) == logs._name_of(log) + b"begun\nended\n"


def test_no_more_than_its_end_is_uploaded(
    log: Path, at_a_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 4)
    with uploaded(log, at_a_url):
        pass
    assert storage.read_bytes(f"{at_a_url}/logs/worker-3.log") == b"gun\n"


def test_what_a_worker_said_on_another_machine_stays(log: Path, at_a_url: str) -> None:
    target = f"{at_a_url}/logs/worker-3.log"
    storage.write_bytes(target, b"why it failed\n")
    for _ in range(2):  # another time on this one
        with uploaded(log, at_a_url), log.open("ab") as file:
            file.write(b"more\n")
    said = b"why it failed\n" + logs._name_of(log) + b"begun\nmore\nmore\n"
    assert storage.read_bytes(target) == said
    other = b"-- on another, file 5 --\nin between\n"
    storage.write_bytes(target, said + other)
    with uploaded(log, at_a_url), log.open("ab") as file:
        file.write(b"back\n")
    own = said.removeprefix(b"why it failed\n") + b"back\n"
    assert storage.read_bytes(target) == b"why it failed\n" + other + own


def test_of_a_run_in_a_folder_nothing_is_uploaded(log: Path) -> None:
    with uploaded(log, str(log.parent)):
        assert not any(thread.name == "log" for thread in threading.enumerate())
    assert [path.name for path in log.parent.iterdir()] == ["worker-3.log"]


def test_a_store_that_fails_or_stands_still_does_not_end_a_run_nor_hold_it_up(
    log: Path, at_a_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # a command may have been called in this process
    answers = threading.Event()

    def failing(uri: str, data: bytes) -> None:
        answers.wait(60)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(logs.storage, "write_bytes", failing)
    monkeypatch.setattr(logs, "END_SECONDS", 0.05)
    with uploaded(log, at_a_url):
        pass
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "log")
    answers.set()
    thread.join(30)
    assert "worker-3.log: no answer" in caplog.text


def test_an_error_is_in_the_log_and_goes_on(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError), uploaded(log, str(log.parent)):
        raise KeyError("the cause")
    assert "KeyError: 'the cause'" in caplog.text


@pytest.fixture
def run(tmp_path: Path) -> str:
    vectors: Tensor = ones(8, 4)
    tokenizer = word_tokenizer(["a", "b", "c", "d"])
    return small_run(
        tmp_path, {"source": tokenizer, "target": tokenizer}, {"shared": vectors}, share="all"
    )


def test_all_workers_logs_are_shown_by_rank(
    run: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 2**20)
    folder = Path(run) / "logs"
    folder.mkdir()
    (folder / "worker-10.log").write_bytes(b"ten\xff")
    (folder / "worker-2.log").write_bytes(b"cut" + b"two\n".rjust(2**20, b"."))
    (folder / "prepare.log").write_bytes(b"no worker's")
    assert main(["logs", run]) == 0
    said = capfdbinary.readouterr().out
    assert said.startswith(b"==> worker-2.log, the last 1 MiB <==\n....")
    assert said.endswith(b"two\n\n==> worker-10.log <==\nten\xff\n")
    assert len(said) < 2**20 + 200
    assert main(["logs", run, "--follow"]) == 2
    assert b"only a job can be followed" in capfdbinary.readouterr().err


def test_where_there_is_nothing_to_show_it_is_said(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="logs holds no log of a worker yet"):
        list(read_logs(run))
    with pytest.raises(UserError, match="no run in"):
        list(read_logs(str(tmp_path / "elsewhere")))


def test_a_job_is_no_run(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(run).parent)
    assert is_run("s3://bucket/typo")
    assert is_run("./4711")
    assert is_run(Path(run).name)
    assert not is_run("4711")
    assert not is_run("raysubmit_x1")

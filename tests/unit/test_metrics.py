from __future__ import annotations

import json
import math
import os
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from dist_embed.errors import StoreUnavailable
from dist_embed.run import metrics
from dist_embed.run.metrics import METRICS_NAME, MetricsLog, OtherWriter, read_metrics
from dist_embed.storage import uri as storage


@pytest.fixture(params=["local", "memory"])
def run_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://m-{uuid.uuid4().hex}"


def write_steps(run_uri: str, after_step: int, steps: range, loss: float) -> None:
    with MetricsLog(run_uri, after_step) as log:
        for step in steps:
            log.write(step, loss=loss)


def test_lines_hold_step_time_and_what_is_known(run_uri: str) -> None:
    with MetricsLog(run_uri, 0) as log:
        log.write(1, loss=2.5, bleu=None)
        log.write(2, tokens=7)
    first, second = read_metrics(run_uri)
    assert (first.pop("time"), second.pop("time")) >= (1.7e9, 1.7e9)
    assert first == {"step": 1, "loss": 2.5}
    assert second == {"step": 2, "tokens": 7}


def test_a_figure_of_every_worker_is_a_list(run_uri: str) -> None:
    with MetricsLog(run_uri, 0) as log:
        log.write(3, **{"phase/data_wait": 0.5, "workers/own_seconds": [1.5, 2.5]})
    (line,) = read_metrics(run_uri)
    assert line["phase/data_wait"] == 0.5
    assert line["workers/own_seconds"] == [1.5, 2.5]


def test_what_a_translation_records_beside_its_figures(run_uri: str) -> None:
    sample = {"source": "a", "reference": "b", "translation": "c\u2028"}
    with MetricsLog(run_uri, 0) as log:
        log.write(1, validation_bleu=1.0, samples=[sample], neighbors={"a": [("b", 0.5)]})
    (line,) = read_metrics(run_uri)
    assert line["validation_samples"] == [sample]
    assert line["validation_neighbors"] == {"a": [["b", 0.5]]}
    assert [name for _, name, _ in shown_by_tensorboard(run_uri) if name] == ["validation_bleu"]


def test_no_run_has_no_metrics(run_uri: str) -> None:
    assert read_metrics(run_uri) == []


def test_lines_after_the_resumed_step_are_dropped(run_uri: str) -> None:
    write_steps(run_uri, 0, range(1, 8), loss=1.0)
    write_steps(run_uri, 4, range(5, 7), loss=2.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(run_uri)] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0),
    ]  # fmt: skip


def test_what_is_evaluated_again_at_the_resumed_step_is_dropped(run_uri: str) -> None:
    with MetricsLog(run_uri, 0) as log:
        for step in (1, 2):
            log.write(step, loss=1.0)
            log.write(step, validation_loss=2.0)
            log.write(step, validation_bleu=3.0)
    for again, kept in ((False, 6), (True, 4)):
        with MetricsLog(run_uri, 2, evaluates_again=again):
            pass
        assert len(read_metrics(run_uri)) == kept
    assert [line["step"] for line in read_metrics(run_uri)] == [1, 1, 1, 2]


def test_lines_at_a_url_are_seen_while_it_trains(
    monkeypatch: pytest.MonkeyPatch, run_uri: str
) -> None:
    monkeypatch.setattr(metrics, "EVERY_SECONDS", 0.01)
    with MetricsLog(run_uri, 0) as log:
        log.write(1, loss=1.0)
        give_up_at = time.monotonic() + 60
        while not read_metrics(run_uri) and time.monotonic() < give_up_at:
            time.sleep(0.01)
        assert [line["step"] for line in read_metrics(run_uri)] == [1]


def test_at_a_url_the_command_that_began_last_has_the_metrics() -> None:
    """The other may be the rest of a lost machine, which another command has taken over from."""
    run_uri = f"memory://m-{uuid.uuid4().hex}"
    with MetricsLog(run_uri, 0) as lost:
        lost.write(1, loss=1.0)
        lost.flush()
        with MetricsLog(run_uri, 1) as log:
            log.write(2, loss=2.0)
            lost.write(2, loss=9.0)
            with pytest.raises(OtherWriter):
                lost.flush()
        lost.write(3, loss=9.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(run_uri)] == [(1, 1.0), (2, 2.0)]
    with MetricsLog(run_uri, 2) as log:
        storage.remove(storage.join(run_uri, metrics.WRITER_NAME))
        log.write(3, loss=3.0)
    assert len(read_metrics(run_uri)) == 3


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write_steps(str(tmp_path), 0, range(1, 3), loss=1.0)
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"step": 3, "ti')
    assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 2]
    write_steps(str(tmp_path), 2, range(3, 4), loss=1.0)
    lines = (tmp_path / METRICS_NAME).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_tensorboard_files_lie_in_the_run(run_uri: str) -> None:
    write_steps(run_uri, 0, range(1, 3), loss=1.0)
    folder = storage.join(run_uri, "tensorboard")
    (uri,) = storage.glob(storage.join(folder, "*"))
    assert "/tensorboard/events.out.tfevents" in uri
    assert b"loss" in storage.read_bytes(uri)


def shown_by_tensorboard(run_uri: str) -> list[tuple[int, str, float]]:
    """Step, name and value of each scalar; a line on which later steps are dropped has no name."""
    found = []
    for uri in storage.glob(storage.join(run_uri, "tensorboard", "*")):
        data = storage.read_bytes(uri)
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status:
                found.append((event.step, "", 0.0))
            found += [(event.step, one.tag, one.simple_value) for one in event.summary.value]
    return found


def test_tensorboard_has_the_values_and_drops_those_that_are_repeated(run_uri: str) -> None:
    with MetricsLog(run_uri, 0) as log:
        for step in (1, 2, 3):
            log.write(step, loss=step + 0.5, bleu=None if step < 3 else math.inf)
    expected = [(1, "loss", 1.5), (2, "loss", 2.5), (3, "loss", 3.5), (3, "bleu", math.inf)]
    assert [one for one in shown_by_tensorboard(run_uri) if one[1]] == expected
    for uri in storage.glob(storage.join(run_uri, "tensorboard", "*")):
        storage.remove(uri)
    with MetricsLog(run_uri, 2):
        pass
    assert shown_by_tensorboard(run_uri) == [(3, "", 0.0)]


def test_nothing_is_left_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with MetricsLog(f"memory://m-{uuid.uuid4().hex}", 0):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    # A thread of tensorboardX's queue ends by itself, and closes its pipe then (2.6.5,
    # event_file_writer.py; multiprocessing/queues.py).
    deadline = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_local_line_is_visible_at_once(tmp_path: Path) -> None:
    with MetricsLog(str(tmp_path), 0) as log:
        log.write(1, loss=1.0)
        assert len(read_metrics(str(tmp_path))) == 1


def test_an_object_store_has_the_lines_at_every_flush() -> None:
    uri = f"memory://m-{uuid.uuid4().hex}"
    with MetricsLog(uri, 0) as log:
        log.write(1, loss=1.0)
        log.flush()
        assert [line["step"] for line in read_metrics(uri)] == [1]
        log.write(2, loss=1.0)
    assert [line["step"] for line in read_metrics(uri)] == [1, 2]


def test_what_was_written_before_an_error_is_kept(run_uri: str) -> None:
    def failing() -> None:
        with MetricsLog(run_uri, 0) as log:
            log.write(1, loss=1.0)
            raise RuntimeError("worker lost")

    with pytest.raises(RuntimeError, match="worker lost"):
        failing()
    assert len(read_metrics(run_uri)) == 1


def test_a_store_that_fails_at_the_end_does_not_hide_why_the_run_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(uri: str, data: bytes) -> None:
        raise StoreUnavailable("no answer")

    def run(fails: bool) -> None:
        with MetricsLog(f"memory://m-{uuid.uuid4().hex}", 0) as log:
            log.write(1, loss=1.0)
            monkeypatch.setattr(storage, "write_bytes", gone)
            if fails:
                raise RuntimeError("could not be saved")

    for fails, said in ((True, "could not be saved"), (False, "no answer")):
        with pytest.raises(Exception, match=said):
            run(fails)
        monkeypatch.undo()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_line_is_valid_json(tmp_path: Path, value: float) -> None:
    # NaN and Infinity are Python's own: jq, JavaScript and BigQuery refuse the whole line.
    with MetricsLog(str(tmp_path), 0) as log:
        log.write(1, loss=value)

    def refuse(word: str) -> None:
        raise ValueError(f"not JSON: {word}")

    json.loads((tmp_path / METRICS_NAME).read_text(), parse_constant=refuse)


def test_a_metrics_file_without_room_is_named(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    log = MetricsLog(str(tmp_path), 0)
    with pytest.raises(OSError, match=f"File too large: '{tmp_path}/metrics.jsonl'"), full_disk():
        log.write(1, loss=1.0, sizes=[1.0] * 1000)


def test_metrics_do_not_go_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text('{"step": 1}\n')
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").symlink_to("../victim")
    with MetricsLog(str(tmp_path / "run"), 5) as log:
        log.write(6, loss=1.0)
    assert (tmp_path / "victim").read_text() == '{"step": 1}\n'
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2

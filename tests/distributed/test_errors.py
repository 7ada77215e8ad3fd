from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dist_embed.cluster.local import launch_local
from dist_embed.errors import RunFailed, RunStopped
from dist_embed.observe.events import Emit, Event
from dist_embed.parallel import errors, stop
from dist_embed.parallel.collectives import (
    exchange_rows,
    gather_rows,
    gather_texts,
    same_text_from_first,
    stack_over_workers,
    sum_and_scatter_rows,
    sum_over_workers,
)
from dist_embed.parallel.errors import WorkerError, all_or_none, errors_shared
from dist_embed.parallel.group import Group, joined_group
from dist_embed.parallel.rendezvous import hosted_store
from dist_embed.parallel.stop import exit_on_signals, stop_on_signals, stop_requested
from tests.distributed.pool import WorkerPool


def fail_in_phase(group: Group, failing: int) -> tuple[str, str, str | None]:
    try:
        with all_or_none(group):
            if group.rank == failing:
                raise FileNotFoundError("part 7 is gone")
    except Exception as exc:
        return type(exc).__name__, str(exc), getattr(exc, "user_message", None)
    return "nothing", "", None


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_in_a_phase_is_raised_on_every_worker(workers: WorkerPool, failing: int) -> None:
    for rank, (kind, text, for_user) in enumerate(workers.run(3, fail_in_phase, failing)):
        assert kind == ("FileNotFoundError" if rank == failing else "WorkerError")
        assert "part 7 is gone" in text
        if rank != failing:
            assert f"worker {failing} failed" in text
            assert "Traceback" in text
            assert for_user == "part 7 is gone"


def fail_between_collectives(failing: int, emit: Emit) -> None:
    with joined_group("cpu", 60.0) as group:
        try:
            with errors_shared(group):
                sum_over_workers(torch.zeros(1), group)
                started = time.monotonic()
                if group.rank == failing:
                    raise ZeroDivisionError("a bug on one worker")
                sum_over_workers(torch.zeros(1), group)
        except Exception as exc:
            emit({"kind": "line", "rank": group.rank, "type": type(exc).__name__, "text": str(exc),
                  "took": time.monotonic() - started})  # fmt: skip
            raise


@pytest.mark.parametrize("failing", [0, 1])
def test_peers_of_a_failed_worker_raise_its_traceback(failing: int) -> None:
    told: list[dict[str, Any]] = []
    with pytest.raises(RunFailed, match=f"worker {failing} failed:(.|\n)*a bug on one worker"):
        launch_local(
            fail_between_collectives, (failing,), num_workers=3, on_event=told.append, log_folder=""
        )
    assert sorted(event["rank"] for event in told) == [0, 1, 2]
    for event in told:
        assert event["took"] < 50  # well below the collectives' own limit
        assert "a bug on one worker" in event["text"]
        assert event["type"] == ("ZeroDivisionError" if event["rank"] == failing else "WorkerError")


def fail_as_the_host_of_the_store(emit: Emit) -> None:
    rank = int(os.environ["RANK"])
    launchers = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
    if rank == 0:
        store = hosted_store()
        launchers.set("port", str(store.port))
    else:
        store = TCPStore("127.0.0.1", int(launchers.get("port")), is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=3, timeout=timedelta(seconds=60)
    )
    assert dist.group.WORLD is not None
    group = Group(rank, 3, 3, torch.device("cpu"), dist.group.WORLD)
    started = time.monotonic()
    try:
        with errors_shared(group):
            if rank == 0:
                raise ZeroDivisionError("only worker 0 knows")
            sum_over_workers(torch.zeros(1), group)  # for which it never comes
    except Exception as exc:
        took = time.monotonic() - started
        emit({"kind": "line", "type": type(exc).__name__, "text": str(exc), "took": took})
        if rank > 0:  # worker 0 dies unheard by the launcher
            raise
        os._exit(1)


def test_a_worker_0_that_hosts_the_store_and_fails_is_heard() -> None:
    told: list[dict[str, Any]] = []
    with pytest.raises(RunFailed, match=r"worker 0 failed:(.|\n)*only worker 0 knows"):
        launch_local(
            fail_as_the_host_of_the_store, (), num_workers=3, on_event=told.append, log_folder=""
        )
    heard = [event for event in told if event["type"] == "WorkerError"]
    assert len(heard) == 2
    for event in heard:
        assert "only worker 0 knows" in event["text"]
        assert event["took"] < errors.CAUSE_WAIT_SECONDS


def hang_forever(emit: Emit) -> None:
    with joined_group("cpu", 2.0) as group:
        if group.rank == 0:
            sum_over_workers(torch.zeros(1), group)
        time.sleep(60)


def test_a_wait_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_embed.cluster.local.GRACE_SECONDS", 0.5)  # for the other worker
    started = time.monotonic()
    with pytest.raises(RunFailed, match="worker 0 failed"):
        launch_local(hang_forever, (), num_workers=2, on_event=print, log_folder="")
    assert time.monotonic() - started < 50


def die(emit: Emit) -> None:
    with joined_group("cpu", 60.0) as group:
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        sum_over_workers(torch.zeros(1), group)


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(RunFailed, match=r"worker 1 was ended from outside.*killed"):
        launch_local(die, (), num_workers=2, on_event=print, log_folder="")


def wait_for_the_end(emit: Emit) -> None:
    # SIGTERM ends a process that has not said otherwise.
    if os.environ["RANK"] == "0":
        emit({"kind": "ready"})
    time.sleep(60)


def test_workers_that_are_not_ready_to_stop_by_themselves_are_no_failure() -> None:
    def stop(event: Event) -> None:
        if event["kind"] == "ready":
            os.kill(os.getpid(), signal.SIGTERM)

    with exit_on_signals(), pytest.raises(RunStopped, match="before the workers had begun"):
        launch_local(
            wait_for_the_end, (), num_workers=2, on_event=stop, log_folder="",
            stop_seconds=30.0,
        )  # fmt: skip


def stop_when_asked(emit: Emit) -> str:
    """As a training does that ends quickly; it has left its block when SIGTERM comes again."""
    with stop_on_signals():
        emit({"kind": "ready", "pid": os.getpid()})
        while not stop_requested():
            time.sleep(0.01)
    time.sleep(1)
    return "saved"


def test_a_worker_that_gets_the_signal_twice_is_not_ended_by_it() -> None:
    lines = []

    def ask(event: Event) -> None:
        if event["kind"] == "ready":  # the group's, then the launcher's
            os.kill(event["pid"], signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            lines.append(event["text"])

    with exit_on_signals():
        result = launch_local(
            stop_when_asked, (), num_workers=1, on_event=ask, log_folder="", stop_seconds=30.0
        )
    assert result == "saved"
    assert lines == ["asked to stop: the run ends after its step"]


def end_by_the_signal(emit: Emit) -> str:
    """Worker 0 has its result; SIGTERM then ends worker 1 in the middle of its farewell."""
    if os.environ["RANK"] == "1":
        emit({"kind": "ready"})
        time.sleep(60)
    return "saved"


def test_a_run_that_is_complete_is_told_so_whatever_ends_its_workers() -> None:
    others = set(multiprocessing.active_children())

    def ask(event: Event) -> None:
        if event["kind"] == "ready":
            deadline = time.monotonic() + 30
            while len(set(multiprocessing.active_children()) - others) > 1:  # worker 0 too
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    with exit_on_signals():
        assert (
            launch_local(
                end_by_the_signal, (), num_workers=2, on_event=ask, log_folder="", stop_seconds=30.0
            )
            == "saved"
        )


def hear_nothing(emit: Emit) -> None:
    """A worker that is asked to stop and does not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.environ["RANK"] == "0":
        emit({"kind": "ready"})
    time.sleep(60)


def test_a_second_ctrl_c_ends_the_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "REPEAT_SECONDS", 0.0)
    lines = []

    def interrupt(event: Event) -> None:
        lines.append(event.get("text"))
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as ended, exit_on_signals():
        launch_local(
            hear_nothing, (), num_workers=2, on_event=interrupt, log_folder="", stop_seconds=50.0
        )
    assert ended.value.code == 130
    assert lines[0] is None
    assert str(lines[1]).endswith("after its step; Ctrl-C again ends it at once")


def test_workers_of_a_task_that_cannot_stop_are_ended_at_once() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(SystemExit) as ended, exit_on_signals():
        launch_local(
            hear_nothing, (), num_workers=2, log_folder="",
            on_event=lambda event: os.kill(os.getpid(), signal.SIGTERM),
        )  # fmt: skip
    assert ended.value.code == 143
    assert set(multiprocessing.active_children()) <= before


def test_workers_that_do_not_stop_in_time_are_killed() -> None:
    def interrupt(event: Event) -> None:
        if event["kind"] == "ready":
            os.kill(os.getpid(), signal.SIGHUP)

    before = set(multiprocessing.active_children())
    with exit_on_signals(), pytest.raises(RunFailed, match="did not end within 1 s and were kil"):
        launch_local(
            hear_nothing, (), num_workers=2, on_event=interrupt, log_folder="", stop_seconds=1.0
        )
    assert set(multiprocessing.active_children()) <= before


def test_a_worker_error_survives_pickling() -> None:
    import pickle

    error = WorkerError(3, "trace", "for the user", is_cause=False, is_passing=True)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def exercise_collectives(group: Group) -> dict[str, object]:
    counts = [2, 0, 3]
    rows = torch.full((counts[group.rank], 2), float(group.rank + 1))
    gathered = gather_rows(rows, counts, group)
    parts = sum_and_scatter_rows(torch.arange(5.0).unsqueeze(1) + group.rank, counts, group)
    # Worker r sends r + 1 rows to each worker.
    sent = torch.full((3 * (group.rank + 1), 1), group.rank)
    received = exchange_rows(sent, [group.rank + 1] * 3, [1, 2, 3], group)
    return {
        "gathered": gathered[:, 0].tolist(),
        "parts": parts[:, 0].tolist(),
        "received": received[:, 0].tolist(),
        "texts": gather_texts(["ä", "", "xyz"][group.rank], group),
        "first": same_text_from_first(f"from {group.rank}" + "!" * group.rank, group),
        "blank": same_text_from_first(["", "of another"][min(group.rank, 1)], group),
        "stacked": stack_over_workers(torch.arange(6).view(2, 3).t() + group.rank, group),
        "numbers": stack_over_workers(torch.tensor(group.rank), group),
        "none": stack_over_workers(torch.empty(0, 4), group),
    }


def exercised_without_warnings(group: Group) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return exercise_collectives(group)


def test_collectives(workers: WorkerPool) -> None:
    results = workers.run(3, exercised_without_warnings)
    for result in results:
        assert result["gathered"] == [1, 1, 3, 3, 3]
        assert result["received"] == [0, 1, 1, 2, 2, 2]
        assert result["texts"] == ["ä", "", "xyz"]
        assert result["first"] == "from 0"
        assert result["blank"] == ""
        apart = [torch.arange(6).view(2, 3).t() + rank for rank in range(3)]
        assert torch.equal(result["stacked"], torch.stack(apart))
        assert torch.equal(result["numbers"], torch.arange(3))
        assert result["none"].shape == (3, 0, 4)
    assert [r["parts"] for r in results] == [[3, 6], [], [9, 12, 15]]


def received_of_texts(group: Group) -> int:
    """How many bytes reach a worker for a text of 1,000 that the first one has."""
    received = []

    def broadcast(tensor: torch.Tensor, **how: Any) -> Any:
        received.append(tensor.nbytes)
        return real(tensor, **how)

    real = dist.broadcast
    with mock.patch.object(dist, "broadcast", broadcast):
        same_text_from_first("x" * (1000 if group.is_first else 5000), group)
    return sum(received)


def test_a_text_of_the_first_reaches_the_others_once(workers: WorkerPool) -> None:
    assert workers.run(3, received_of_texts) == [1008] * 3

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.checkpoint.manifest import CheckpointConflict, CheckpointError, CheckpointLate
from dist_embed.checkpoint.parts import PartLate, PartMissing
from dist_embed.cluster.failure import Failures, Start, failure_event, raise_failure
from dist_embed.errors import RunFailed, StorageError, StoreUnavailable, UserError
from dist_embed.parallel.errors import WorkerError, _account, is_passing


def event_of(rank: int, error: Exception) -> dict[str, Any]:
    try:
        raise error
    except Exception as exc:
        return failure_event(rank, exc)


def test_the_first_own_error_is_told_before_relayed_ones() -> None:
    relayed = event_of(0, WorkerError(2, "Traceback\nZeroDivisionError: as worker 2 saw it"))
    own = event_of(2, ZeroDivisionError("the cause"))
    with pytest.raises(RunFailed, match="worker 2 failed") as caught:
        raise_failure([relayed, own], "/logs/here")
    assert "ZeroDivisionError: the cause" in str(caught.value)
    assert "in event_of" in str(caught.value)
    assert "/logs/here" in str(caught.value)


def test_a_relayed_error_alone_names_the_worker_that_failed() -> None:
    with pytest.raises(RunFailed, match="worker 3 failed:\nTraceback of three"):
        raise_failure([event_of(0, WorkerError(3, "Traceback of three"))], "")


def test_a_mistake_of_the_user_is_told_without_a_traceback() -> None:
    events = [event_of(1, WorkerError(0, "trace")), event_of(0, UserError("no such split 'tset'"))]
    with pytest.raises(UserError) as caught:
        raise_failure(events, "/logs")
    assert str(caught.value) == "no such split 'tset'"


def test_a_mistake_of_the_user_is_told_by_a_peer_that_alone_lives() -> None:
    with pytest.raises(UserError) as caught:
        raise_failure([event_of(1, WorkerError(0, "trace", "no such split 'tset'"))], "/logs")
    assert str(caught.value) == "no such split 'tset'"


def test_a_late_error_of_a_peer_is_not_taken_for_the_cause() -> None:
    late = event_of(1, ConnectionResetError("by peer"))
    with pytest.raises(RunFailed, match=r"^worker 0 failed:\nTraceback"):
        raise_failure([event_of(0, ValueError("the cause")), late], "")


def test_a_broken_collective_is_told_only_where_nobody_knows_better() -> None:
    broken = event_of(0, RuntimeError("[gloo] Connection closed by peer"))
    passed_on = event_of(1, WorkerError(2, "gloo trace", is_cause=False))
    known = event_of(3, WorkerError(4, "the cause"))
    assert [event["is_cause"] for event in (broken, passed_on, known)] == [False, False, True]
    with pytest.raises(RunFailed, match="worker 4 failed:\nthe cause"):
        raise_failure([broken, passed_on, known], "")
    with pytest.raises(RunFailed, match="worker 0 failed"):
        raise_failure([passed_on, broken], "")


def test_events_can_cross_process_borders() -> None:
    event = event_of(1, ValueError("x"))
    assert json.loads(json.dumps(event)) == event
    assert (event["kind"], event["rank"], event["relayed"]) == ("failure", 1, False)
    relayed = event_of(1, WorkerError(0, ""))
    assert [one["teller"] for one in (event, relayed)] == [1, 1]


def test_that_another_writer_has_saved_is_known_through_what_is_made_of_it() -> None:
    conflict = CheckpointConflict("another writer has saved step 5")
    failed = caused(CheckpointError("could not be saved"), conflict)
    for error in (conflict, failed, caused(WorkerError(1, "as told"), failed)):
        assert event_of(0, error)["is_conflict"]
    assert not event_of(0, CheckpointError("full"))["is_conflict"]


@pytest.mark.parametrize("outlives", [False, True])
def test_a_conflict_may_pass_after_an_earlier_start(outlives: bool) -> None:
    start = Start(1, outlives_conflict=outlives)
    start.take(told(1, CheckpointConflict("another writer")))
    assert start.has_conflict
    start.take(told(1, CheckpointError("as another worker tells it"), rank=1))
    assert start.is_final == (not outlives)
    assert start.tellers == {0, 1}


def told(number: int, error: Exception | None = None, rank: int = 0) -> dict[str, Any]:
    begun = {"kind": "begin", "node": f"node of {rank}"}
    return (begun if error is None else event_of(rank, error)) | {"start": number}


BROKEN = RuntimeError("[gloo] Connection closed by peer")
PASSING = StoreUnavailable("could not write x within 120 s")


def test_what_is_told_of_an_earlier_start_counts_no_more() -> None:
    start = Start(1)
    for event in (
        told(0, ZeroDivisionError()), {"kind": "result", "value": 1, "start": 0}, told(0),
        told(1), told(1, rank=1), told(1, PASSING, rank=1),
        {"kind": "result", "value": 2, "start": 1},
    ):  # fmt: skip
        assert start.take(event) is None
    assert start.nodes == {"node of 0", "node of 1"}
    assert [event["rank"] for event in start.failures] == [1]
    assert start.results == [2]
    assert start.why().startswith("worker 1 failed: ")
    assert start.why().endswith("could not write x within 120 s")


def test_a_worker_that_was_lost_is_the_cause_where_nobody_tells_another() -> None:
    start = Start(0)
    assert start.why() == "a worker was lost"
    start.take(told(0, BROKEN))
    assert not start.has_cause
    assert start.why() == "a worker was lost"


def test_lines_of_an_earlier_start_are_not_shown() -> None:
    """Of a worker that was cut off, and is there again."""
    line = {"kind": "line", "text": "step 5"}
    assert Start(3).take(line | {"start": 3}) == line
    assert Start(3).take(line | {"start": 2}) is None


@pytest.mark.parametrize(
    ("errors", "final"),
    [
        ([], False),
        ([BROKEN], False),
        ([PASSING], False),
        ([UserError("no such file")], True),
        ([ZeroDivisionError("a bug")], True),
        ([BROKEN, UserError("no such file")], True),
        ([WorkerError(1, "", "no such file"), BROKEN], True),
        ([PASSING, UserError("not written")], False),
        ([WorkerError(1, "", is_passing=True)], False),
    ],
)
def test_only_what_may_pass_is_tried_again(errors: list[Exception], final: bool) -> None:
    start = Start(0)
    start.take(told(0))
    assert start.is_under_way
    for error in errors:
        start.take(told(0, error))
    assert start.is_final == final
    assert start.is_under_way == (not errors)


def test_failures_are_outlived_up_to_a_budget_with_longer_and_longer_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    failures = Failures(3)
    assert [failures.wait_after("a worker was lost") for _ in range(4)] == [1.0, 2.0, 4.0, None]
    now[0] += 12 * 3600
    failures.wait_after("a full disk")
    now[0] += 12 * 3600  # by then the others count no more
    assert failures.wait_after("again") == 2.0
    assert failures.beside("again").endswith(": a full disk")
    now[0] += 24 * 3600
    assert failures.wait_after("again") == 1.0
    assert failures.beside("again") == ""
    assert Failures(0).wait_after("at all") is None
    many = Failures(99)
    assert max(many.wait_after("x") or 0 for _ in range(20)) == 60.0
    endless = Failures(math.inf)
    assert [endless.wait_after("x") for _ in range(2000)][-1] == 60.0


def test_the_first_failure_is_told_beside_the_last_one_where_it_was_another() -> None:
    failures = Failures(1)
    failures.wait_after("a worker was lost")
    assert failures.beside("a worker was lost") == ""
    told_beside = failures.beside("worker 1 failed: full")
    assert told_beside == "\nthe first failure was another one: a worker was lost"
    for events in ([event_of(0, UserError("no"))], [event_of(0, ZeroDivisionError())]):
        with pytest.raises((UserError, RunFailed)) as caught:
            raise_failure(events, "LOGS", told_beside)
        assert str(caught.value).endswith(told_beside)


# What torch 2.13 puts after every such text.
HINT = (
    "\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (BROKEN, True),
        (ConnectionResetError("by peer"), True),
        # Of a store whose host has ended before this worker came to it.
        (dist.DistNetworkError("The client socket has timed out after 60000ms"), True),
        (PASSING, True),
        (caused(CheckpointError("not written"), PASSING), True),
        (caused(CheckpointError("not written"), WorkerError(1, "", is_passing=True)), True),
        (caused(CheckpointError("full"), OSError(errno.ENOSPC, "no space")), False),
        (caused(WorkerError(1, "its own mistake"), BROKEN), False),
        (StorageError("no credentials"), False),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (OSError(errno.ETIMEDOUT, "timed out"), True),
        (OSError(errno.EACCES, "denied"), False),
        (CheckpointLate("not written in time"), True),
        (PartLate("worker 1 had not written all"), True),
        (PartMissing("worker 1 has failed"), False),
        (torch.AcceleratorError(f"CUDA error: uncorrectable ECC error{HINT}"), True),
        (torch.AcceleratorError(f"CUDA error: unspecified launch failure{HINT}"), True),
        (torch.AcceleratorError(f"CUDA error: device-side assert triggered{HINT}"), False),
        (torch.AcceleratorError(f"CUDA error: an illegal memory access was{HINT}"), False),
        (torch.AcceleratorError(f"CUDA error: invalid argument{HINT}"), False),
        # Memory that is refused is wanted again.
        (torch.AcceleratorError(f"CUDA error: out of memory{HINT}"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (MemoryError(), False),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                "allocate memory: you tried to allocate 4096 bytes. Error code 12"
            ),
            False,
        ),
        (FileNotFoundError("x"), False),
        (RuntimeError("cannot schedule new futures after interpreter shutdown"), True),
        (RuntimeError("x"), False),
        (UserError("x"), False),
    ],
)
def test_what_may_pass(error: Exception, passing: bool) -> None:
    assert is_passing(error) == passing
    assert failure_event(0, error)["is_passing"] == passing
    assert json.loads(_account(0, error))["is_passing"] == passing


ENDING = """
import atexit, threading
from dist_embed.parallel.errors import is_passing

closed, told = threading.Event(), threading.Event()

def work():
    closed.wait(60)
    print(is_passing(RuntimeError("what is read ahead has been closed")), flush=True)
    told.set()

def close():
    closed.set()
    told.wait(60)

atexit.register(close)
threading.Thread(target=work, daemon=True).start()
print(is_passing(RuntimeError("of the code")), flush=True)
"""


def test_what_fails_as_the_interpreter_ends_is_not_of_the_code() -> None:
    """A worker of Ray is a thread of a process that SIGTERM ends."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "False\nTrue\n"

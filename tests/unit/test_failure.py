from __future__ import annotations

import errno
import json
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.checkpoint.manifest import CheckpointError, CheckpointLate
from dist_embed.checkpoint.parts import PartLate, PartMissing
from dist_embed.cluster.failure import Attempts, failure_event, raise_failure
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


def told(name: str, error: Exception | None = None, rank: int = 0) -> dict[str, Any]:
    event = {"kind": "begin"} if error is None else event_of(rank, error)
    return event | {"attempt": name}


BROKEN = RuntimeError("[gloo] Connection closed by peer")
PASSING = StoreUnavailable("could not write x within 120 s")


def test_the_failure_of_an_earlier_attempt_is_no_cause_of_a_later_one() -> None:
    attempts = Attempts()
    assert attempts.take(told("a")) is None
    assert attempts.take(told("a")) is None  # the second worker
    attempts.take(told("a", PASSING, rank=1))
    assert attempts.take({"kind": "result", "value": 1, "attempt": "a"}) is None
    assert [event["rank"] for event in attempts.failures] == [1]
    assert attempts.results == [1]
    again = attempts.take(told("b"))
    assert again is not None
    assert again["kind"] == "line"
    assert again["text"].startswith("workers are started again: worker 1 failed: ")
    assert again["text"].endswith("could not write x within 120 s")
    assert attempts.failures == attempts.results == []
    attempts.take(told("a", ZeroDivisionError()))  # late
    assert attempts.failures == []
    attempts.take(told("b", BROKEN))
    assert [event["is_cause"] for event in attempts.failures] == [False]
    again = attempts.take(told("c"))
    assert again == {"kind": "line", "text": "workers are started again: one was lost"}


def test_lines_are_shown_whatever_the_attempt() -> None:
    line = {"kind": "line", "text": "step 5"}
    assert Attempts().take(line) is line


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
    attempts = Attempts()
    attempts.take(told("a"))
    for error in errors:
        attempts.take(told("a", error))
    assert attempts.is_final == final


def test_workers_are_under_way_from_their_beginning_to_a_failure() -> None:
    attempts = Attempts()
    assert not attempts.are_under_way
    for event, under_way in [
        (told("a"), True), (told("a", PASSING), False), (told("b"), True),
        (told("b", ZeroDivisionError()), False),
    ]:  # fmt: skip
        attempts.take(event)
        assert attempts.are_under_way == under_way


def test_a_failure_that_is_final_stays_so_though_ray_begins_again() -> None:
    attempts = Attempts()
    attempts.take(told("a"))
    attempts.take(told("a", UserError("no such file")))
    assert attempts.take(told("b")) is None
    assert attempts.take(told("b", BROKEN)) is None
    assert attempts.is_final
    (failure,) = attempts.failures
    assert failure["user_message"] == "no such file"


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
        (FileNotFoundError("x"), False),
        (UserError("x"), False),
    ],
)
def test_what_may_pass(error: Exception, passing: bool) -> None:
    assert is_passing(error) == passing
    assert failure_event(0, error)["is_passing"] == passing
    assert json.loads(_account(0, error))["is_passing"] == passing

from __future__ import annotations

import json
from typing import Any

import pytest

from dist_embed.cluster.failure import failure_event, raise_failure
from dist_embed.config.errors import RunFailed, UserError
from dist_embed.parallel.errors import WorkerError


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

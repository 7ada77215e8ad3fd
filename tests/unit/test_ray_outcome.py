"""What Ray Train's own errors say of workers that have told nothing, or too little."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RaySystemError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from dist_embed.cluster.failure import Start, failure_event, raise_failure
from dist_embed.cluster.ray_outcome import untold, why
from dist_embed.errors import RunFailed
from dist_embed.parallel.errors import WorkerError

LOST = WorkerHealthCheckFailedError("worker 1 has not answered", ActorDiedError())
NO_PACKAGE = ModuleNotFoundError("No module named 'dist_embed'")


def start_of(*told: dict[str, Any]) -> Start:
    start = Start(0)
    for event in told:
        start.take(event | {"start": 0})
    return start


def of_task(cause: Exception) -> Exception:
    """As `ray.get` raises what a method of a worker did."""
    text = f"Traceback:\n  in _host\n{type(cause).__name__}: {cause}"
    error = RayTaskError("execute", text, cause, "worker", 1, "10.0.0.1")
    raised: Exception = error.as_instanceof_cause()
    return raised


@pytest.mark.parametrize(
    "failure",
    [
        NO_PACKAGE,
        of_task(NO_PACKAGE),
        of_task(RaySystemError(NO_PACKAGE, f"Traceback\nModuleNotFoundError: {NO_PACKAGE}")),
    ],
    ids=["raised", "of a task", "unpickled"],
)
def test_what_a_worker_could_not_tell_is_told_and_final(failure: Exception) -> None:
    """Where an image lacks the package, or has another version of it."""
    outcomes = (ControllerError(failure), WorkerGroupError("failed", {3: failure}))
    for outcome, who in zip(outcomes, ("a worker", "worker 3"), strict=True):
        start = start_of()
        start.failures += untold(start, outcome)
        assert start.is_final
        assert why(start, outcome) == f"{who} failed: ModuleNotFoundError: {NO_PACKAGE}"
        with pytest.raises(RunFailed, match=rf"^{who} failed:\n[^$]*No module named 'dist_embed'"):
            raise_failure(start.failures, "LOGS")


def test_a_trace_of_a_worker_s_machine_is_told() -> None:
    (event,) = untold(start_of(), ControllerError(of_task(ValueError("no such port"))))
    assert "in _host" in event["trace"]


@pytest.mark.parametrize(
    "failure",
    [
        LOST,
        of_task(ActorDiedError()),
        WorkerGroupStartupTimeoutError(2),
        WorkerGroupStartupFailedError("a node has ended"),
        RaySystemError("the raylet is gone"),
    ],
)
def test_what_is_ray_s_own_is_a_loss(failure: Exception) -> None:
    for outcome in (ControllerError(failure), WorkerGroupError("lost", {1: failure})):
        assert untold(start_of(), outcome) == []


def test_what_may_pass_is_told_and_not_final() -> None:
    start = start_of()
    start.failures += untold(start, WorkerGroupError("x", {0: ConnectionResetError("peer")}))
    assert start.has_cause
    assert not start.is_final


def test_who_has_told_is_not_told_again() -> None:
    """Also where it told of another: that one was lost, and is the one to name."""
    relayed = failure_event(0, WorkerError(1, "gloo", is_cause=False))
    start = start_of(relayed)
    outcome = WorkerGroupError("x", {0: WorkerError(1, "gloo"), 1: LOST})
    assert untold(start, outcome) == []
    assert why(start, outcome) == "worker 1 was lost"


def test_a_network_between_workers_that_all_live_is_no_lost_worker() -> None:
    broken = [failure_event(rank, RuntimeError("gloo: Timed out")) for rank in (0, 1)]
    outcome = WorkerGroupError("x", {0: RuntimeError("gloo"), 1: RuntimeError("gloo")})
    assert why(start_of(*broken), outcome) == "an exchange between workers broke"


def test_an_error_without_a_text_is_named() -> None:
    assert why(start_of(), ControllerError(WorkerGroupStartupFailedError())) == (
        "WorkerGroupStartupFailedError"
    )


def test_of_no_failure_and_of_others_nothing_is_said() -> None:
    for outcome in (None, TrainingFailedError()):
        assert untold(start_of(), outcome) == []
        assert why(start_of(), outcome) == "a worker was lost"


def test_ray_s_errors_reach_the_launcher_as_they_are() -> None:
    """Pickled by the controller, as the others."""
    outcome = pickle.loads(pickle.dumps(WorkerGroupError("x", {1: LOST, 2: NO_PACKAGE})))
    (event,) = untold(start_of(), outcome)
    assert (event["rank"], event["trace"]) == (2, f"ModuleNotFoundError: {NO_PACKAGE}\n")

"""What Ray Train says of workers that have failed, beside what they have told themselves."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError, RaySystemError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import RayTrainError, WorkerGroupStartupTimeoutError

from dist_embed.cluster.failure import Start, failure_event


def untold(start: Start, outcome: Exception | None) -> list[dict[str, Any]]:
    """Failures of workers that could not tell them, such as a package that their machine lacks.

    What Ray says of its own, that a worker was lost or not started, is none of them.
    """
    errors: dict[int | None, Exception] = {}
    if isinstance(outcome, ControllerError):
        errors = {None: outcome.controller_failure}
    elif isinstance(outcome, WorkerGroupError):
        errors = {
            rank: error
            for rank, error in outcome.worker_failures.items()
            if rank not in start.tellers
        }
    events = []
    for rank, error in errors.items():
        raised = _raised(error)
        if not isinstance(raised, RayError | RayTrainError):
            event = failure_event(rank, raised)
            # Its traceback stays behind where it was raised; Ray's error has it as text.
            events.append(event | {"trace": str(error)} if raised is not error else event)
    return events


def _raised(error: BaseException) -> BaseException:
    """What was raised in a worker, inside what Ray makes of it."""
    while True:
        if isinstance(error, RayTaskError):
            error = error.cause
        elif isinstance(error, RaySystemError) and isinstance(error.client_exc, Exception):
            error = error.client_exc  # what it could not unpickle
        else:
            return error


def why(start: Start, outcome: Exception | None) -> str:
    """In a line how a start has failed."""
    if isinstance(outcome, ControllerError):  # the workers have not begun
        return start.why(_first_line(outcome.controller_failure))
    if isinstance(outcome, WorkerGroupError):
        lost = sorted(outcome.worker_failures.keys() - start.tellers)
        return start.why(
            f"worker {lost[0]} was lost" if lost else "an exchange between workers broke"
        )
    if isinstance(outcome, RayError):
        return start.why("what Ray Train runs the workers by was lost (its controller)")
    if outcome is not None and not isinstance(outcome, TrainingFailedError):
        return start.why(f"Ray Train failed: {type(outcome).__name__}: {_first_line(outcome)}")
    return start.why()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def lost_room(outcome: Exception | None) -> bool:
    """Whether the room that there was is not there any more: others were faster, or
    a node of it has gone.
    """
    error = outcome.controller_failure if isinstance(outcome, ControllerError) else None
    return isinstance(error, WorkerGroupStartupTimeoutError)


def may_start_again(outcome: Exception | None) -> bool:
    """Whether another start may go better than one that ended so."""
    return outcome is None or isinstance(outcome, TrainingFailedError | RayError)


def ended_by_itself(outcome: Exception | None) -> bool:
    """Whether what ran the workers has given back what it held, before it ended so. Not where one
    was lost while they started: the slots stay taken (Ray Train 2.60, worker_group.py: `_start`
    gives them free only where no callback had been called).
    """
    return outcome is None or isinstance(outcome, WorkerGroupError)

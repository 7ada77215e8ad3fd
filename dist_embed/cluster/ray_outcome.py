"""What Ray Train says of workers that have failed, beside what they have told themselves."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError, RaySystemError, RayTaskError
from ray.train import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import RayTrainError

from dist_embed.cluster.failure import Attempt, failure_event


def untold(attempt: Attempt, outcome: Exception | None) -> list[dict[str, Any]]:
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
            if rank not in attempt.tellers
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


def why(attempt: Attempt, outcome: Exception | None) -> str:
    """In a line how a start has failed."""
    if isinstance(outcome, ControllerError):  # the workers have not begun
        failure = outcome.controller_failure
        return attempt.why((str(failure).splitlines() or [type(failure).__name__])[0])
    if isinstance(outcome, WorkerGroupError):
        lost = sorted(outcome.worker_failures.keys() - attempt.tellers)
        return attempt.why(
            f"worker {lost[0]} was lost" if lost else "an exchange between workers broke"
        )
    return attempt.why()


def was_announced(outcome: Exception | None) -> bool:
    """Whether a node was taken away that Ray knew of beforehand."""
    return isinstance(outcome, PreemptionError)


def may_start_again(outcome: Exception | None) -> bool:
    """Whether there is room again after a start that ended so: what a controller holds that was
    killed, Ray gives free by and by only (2.60: not within a minute).
    """
    return outcome is None or isinstance(outcome, TrainingFailedError)

"""How a failed run is told to its user: the first worker's own error, once."""

from __future__ import annotations

import signal
import traceback
from typing import Any, NoReturn

from dist_embed.config.errors import RunFailed, UserError
from dist_embed.parallel.errors import WorkerError, is_broken_collective, user_message
from dist_embed.parallel.stop import taken_signal


def failure_event(rank: int, exc: BaseException) -> dict[str, Any]:
    """What a failing worker sends to the launcher.

    ``rank``: who failed first, as far as is known. ``is_cause``: what is told is that worker's own
    error, not a collective that somebody else broke. ``relayed``: a peer tells it.
    """
    if isinstance(exc, WorkerError):
        return {
            "kind": "failure", "rank": exc.rank, "relayed": True, "is_cause": exc.is_cause,
            "user_message": exc.user_message, "trace": exc.trace,
        }  # fmt: skip
    return {
        "kind": "failure",
        "rank": rank,
        "relayed": False,
        "is_cause": not is_broken_collective(exc),
        "user_message": user_message(exc),
        "trace": "".join(traceback.format_exception(exc)),
    }


def raise_failure(events: list[dict[str, Any]], log_folder: str) -> NoReturn:
    """Raise the cause among the failures of several workers.

    Raises:
        UserError: where the cause is a mistake of the user; the message alone.
        RunFailed: otherwise, with the failing worker's traceback.
    """
    for event in events:
        if event["user_message"] is not None:
            raise UserError(event["user_message"])
    # A worker's own error before what a peer tells of it, and both before a broken collective.
    first = min(events, key=lambda event: (not event["is_cause"], event["relayed"]))
    raise RunFailed(
        f"worker {first['rank']} failed:\n{first['trace'].rstrip()}\n(worker logs: {log_folder})"
    )


def asked_to_stop() -> dict[str, Any]:
    """The line that is shown when a run's workers are asked to stop."""
    again = "; Ctrl-C again ends it at once" if taken_signal() == signal.SIGINT else ""
    return {"kind": "line", "text": f"asked to stop: the run ends after its step{again}"}


def stopped_too_late(seconds: float) -> str:
    """What is said when workers that were asked to stop did not end in time."""
    return (
        f"asked to stop, but the workers did not end within {seconds:.0f} s and were killed; the "
        "run goes on from its newest checkpoint"
    )

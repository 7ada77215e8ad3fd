"""How a failed run is told to its user: the first worker's own error, once."""

from __future__ import annotations

import traceback
from typing import Any, NoReturn

from dist_embed.config.errors import RunFailed, UserError
from dist_embed.parallel.errors import WorkerError, is_broken_collective


def failure_event(rank: int, exc: BaseException) -> dict[str, Any]:
    """What a failing worker sends to the launcher.

    ``relayed``: the cause lies with another worker. ``user_message``: the message says all, as for
    a `UserError`, or for an `OSError`, which names the file and what the system has against it.
    """
    if isinstance(exc, WorkerError):
        return {
            "kind": "failure", "rank": exc.rank, "relayed": True, "user_message": None,
            "trace": exc.trace,
        }  # fmt: skip
    return {
        "kind": "failure",
        "rank": rank,
        "relayed": is_broken_collective(exc),
        "user_message": str(exc) if isinstance(exc, UserError | OSError) else None,
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
    # A worker's own error before one that only passes on what a peer said.
    first = next((event for event in events if not event["relayed"]), events[0])
    raise RunFailed(
        f"worker {first['rank']} failed:\n{first['trace'].rstrip()}\n(worker logs: {log_folder})"
    )


def stopped_too_late(seconds: float) -> str:
    """What is said when workers that were asked to stop did not end in time."""
    return (
        f"asked to stop, but the workers did not end within {seconds:.0f} s and were killed; the "
        "run goes on from its newest checkpoint"
    )

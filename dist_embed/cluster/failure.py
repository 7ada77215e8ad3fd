"""How a failed run is told to its user: the first worker's own error, once."""

from __future__ import annotations

import traceback
from typing import Any

from dist_embed.config.errors import UserError
from dist_embed.parallel.errors import WorkerError


class RunFailed(Exception):
    """Workers failed; the message holds the traceback of the one that failed first."""


def failure_event(rank: int, exc: BaseException) -> dict[str, Any]:
    """What a failing worker sends to the launcher."""
    relayed = isinstance(exc, WorkerError)
    return {
        "kind": "failure",
        "rank": exc.rank if isinstance(exc, WorkerError) else rank,
        "relayed": relayed,
        "user_message": str(exc) if isinstance(exc, UserError) else None,
        "trace": exc.trace if isinstance(exc, WorkerError) else "".join(
            traceback.format_exception(exc)
        ),
    }  # fmt: skip


def raise_failure(events: list[dict[str, Any]], log_folder: str) -> None:
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

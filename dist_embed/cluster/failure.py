"""How a failed run is told to its user: the first worker's own error, once."""

from __future__ import annotations

import signal
import traceback
from typing import Any, NoReturn

from dist_embed.errors import RunFailed, UserError
from dist_embed.parallel.errors import WorkerError, is_broken_collective, is_passing, user_message
from dist_embed.parallel.stop import taken_signal


def failure_event(rank: int, exc: BaseException) -> dict[str, Any]:
    """What a failing worker sends to the launcher.

    ``rank``: who failed first, as far as is known. ``is_cause``: what is told is that worker's own
    error, not a collective that somebody else broke. ``is_passing``: it may go well when tried
    again. ``relayed``: a peer tells it.
    """
    if isinstance(exc, WorkerError):
        return {
            "kind": "failure", "rank": exc.rank, "relayed": True, "is_cause": exc.is_cause,
            "is_passing": exc.is_passing, "user_message": exc.user_message, "trace": exc.trace,
        }  # fmt: skip
    return {
        "kind": "failure",
        "rank": rank,
        "relayed": False,
        "is_cause": not is_broken_collective(exc),
        "is_passing": is_passing(exc),
        "user_message": user_message(exc),
        "trace": "".join(traceback.format_exception(exc)),
    }


class Attempts:
    """What the workers of a run have told that is started again after failures.

    Every worker says that it begins, with a name that all workers of an attempt have in common.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self.failures: list[dict[str, Any]] = []
        self.results: list[Any] = []

    def take(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Take in an event: what earlier attempts have told counts no more once another begins,
        unless they have failed for good.

        Returns what is to be shown, if anything.
        """
        if "attempt" not in event:
            return event
        name = event["attempt"]
        again = None
        if name not in self._names:
            if self.is_final:  # Ray has begun again before it could be ended
                return None
            if self._names:
                again = {"kind": "line", "text": f"workers are started again: {self._why()}"}
            self._names.append(name)
            self.failures, self.results = [], []
        if name == self._names[-1]:
            if event["kind"] == "failure":
                self.failures.append(event)
            elif event["kind"] == "result":
                self.results.append(event["value"])
        return again

    @property
    def are_under_way(self) -> bool:
        """Whether workers have begun of which none has told a failure since."""
        return bool(self._names) and not self.failures

    @property
    def is_final(self) -> bool:
        """Whether the newest attempt has failed in a way that another one would repeat."""
        causes = [failure for failure in self.failures if failure["is_cause"]]
        return bool(causes) and not any(failure["is_passing"] for failure in causes)

    def _why(self) -> str:
        if not any(failure["is_cause"] for failure in self.failures):
            return "one was lost"
        first = _first(self.failures)
        return f"worker {first['rank']} failed: {first['trace'].strip().splitlines()[-1]}"


def raise_failure(events: list[dict[str, Any]], log_folder: str) -> NoReturn:
    """Raise the cause among the failures of several workers.

    Raises:
        UserError: where the cause is a mistake of the user; the message alone.
        RunFailed: otherwise, with the failing worker's traceback.
    """
    for event in events:
        if event["user_message"] is not None:
            raise UserError(event["user_message"])
    first = _first(events)
    raise RunFailed(
        f"worker {first['rank']} failed:\n{first['trace'].rstrip()}\n(worker logs: {log_folder})"
    )


def _first(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A worker's own error before what a peer tells of it, and both before a broken collective."""
    return min(events, key=lambda event: (not event["is_cause"], event["relayed"]))


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

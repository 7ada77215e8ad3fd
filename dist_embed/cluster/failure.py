"""How a failed run is told to its user: the first worker's own error, once."""

from __future__ import annotations

import math
import signal
import time
import traceback
from typing import Any, NoReturn

from dist_embed.checkpoint.manifest import CheckpointConflict
from dist_embed.cluster.settings import FAILURE_HOURS
from dist_embed.errors import RunFailed, UserError, causes
from dist_embed.parallel.errors import WorkerError, is_broken_collective, is_passing, user_message
from dist_embed.parallel.stop import taken_signal

BACKOFF_SECONDS = 1.0  # after the first failure
MOST_BACKOFF_SECONDS = 60.0
FAREWELL_SECONDS = 20.0  # that workers have to end, once worker 0 has told its result


def failure_event(rank: int | None, exc: BaseException) -> dict[str, Any]:
    """What a failing worker, of this rank if that is known, sends to the launcher.

    ``teller``: that worker. ``rank``: who failed first, as far as is known. ``is_cause``: what is
    told is that worker's own error, not a collective that somebody else broke. ``is_passing``: it
    may go well when tried again. ``is_conflict``: another writer has saved the step. ``relayed``:
    a peer tells it.
    """
    told = {"kind": "failure", "teller": rank, "is_conflict": _is_conflict(exc)}
    if isinstance(exc, WorkerError):
        return told | {
            "rank": exc.rank, "relayed": True, "is_cause": exc.is_cause,
            "is_passing": exc.is_passing, "user_message": exc.user_message, "trace": exc.trace,
        }  # fmt: skip
    return told | {
        "rank": rank,
        "relayed": False,
        "is_cause": not is_broken_collective(exc),
        "is_passing": is_passing(exc),
        "user_message": user_message(exc),
        "trace": "".join(traceback.format_exception(exc)),
    }


def _is_conflict(exc: BaseException) -> bool:
    return any(isinstance(step, CheckpointConflict) for step in causes(exc))


class Start:
    """What the workers of one start have told, each by events with that start's ``number``.

    Args:
        outlives_conflict: whether it may pass that another writer has saved a step: an earlier
            start's save may have been published late.
    """

    def __init__(self, number: int, *, outlives_conflict: bool = False) -> None:
        self.number = number
        self._outlives_conflict = outlives_conflict
        self.nodes: set[str] = set()  # that workers have begun on
        self.begun = 0  # workers that have
        self.failures: list[dict[str, Any]] = []
        self.results: list[Any] = []

    def take(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Take in an event; one of an earlier start counts no more: a worker that was cut off tells
        old progress when it comes back. Returns what is to be shown.
        """
        if event["start"] != self.number:
            return None
        if event["kind"] == "begin":
            self.nodes.add(event["node"])
            self.begun += 1
        elif event["kind"] == "failure":
            self.failures.append(event)
        elif event["kind"] == "result":
            self.results.append(event["value"])
        else:
            return {key: value for key, value in event.items() if key != "start"}
        return None

    @property
    def is_under_way(self) -> bool:
        """Whether workers have begun of which none has told a failure since."""
        return bool(self.nodes) and not self.failures

    @property
    def is_final(self) -> bool:
        """Whether it has failed in a way that another one would repeat."""
        causes = [failure for failure in self.failures if failure["is_cause"]]
        if self._outlives_conflict and self.has_conflict:
            return False
        return bool(causes) and not any(failure["is_passing"] for failure in causes)

    @property
    def has_conflict(self) -> bool:
        """Whether it has failed as another writer had saved a step."""
        return any(failure["is_conflict"] for failure in self.failures)

    @property
    def tellers(self) -> set[int]:
        """Workers that have told a failure, their own or another's."""
        return {failure["teller"] for failure in self.failures}

    @property
    def has_cause(self) -> bool:
        """Whether a worker has told an error of its own."""
        return any(failure["is_cause"] for failure in self.failures)

    def why(self, otherwise: str = "a worker was lost") -> str:
        """In a line how it has failed; ``otherwise``: where no worker has told."""
        if not self.has_cause:
            return otherwise
        first = _first(self.failures)
        return f"{_who(first)} failed: {first['trace'].strip().splitlines()[-1]}"


class Failures:
    """Failures that may pass, and how many are left to be outlived.

    Those within `FAILURE_HOURS` count: what happens once a day ends no run of weeks.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._past: list[tuple[float, str]] = []  # when, and how

    def wait_after(self, why: str) -> float | None:
        """Take in a failure; returns the seconds to wait before another start, None: no more.

        They double with every failure.
        """
        now = time.monotonic()
        self._past = [one for one in self._past if now - one[0] < 3600 * FAILURE_HOURS]
        self._past.append((now, why))
        if len(self._past) > self._budget:
            return None
        doubled = min(len(self._past) - 1, 10)
        return min(BACKOFF_SECONDS * 2.0**doubled, MOST_BACKOFF_SECONDS)

    def counted(self) -> str:
        """How many of how many have been outlived; nothing where all are."""
        if math.isinf(self._budget):
            return ""
        return f" ({len(self._past)} of {self._budget:.0f} times in {FAILURE_HOURS} h)"

    def beside(self, why: str) -> str:
        """What is to be told with the last failure: how the first was, if otherwise."""
        first = self._past[0][1] if self._past else why
        return f"\nthe first failure was another one: {first}" if first != why else ""


def raise_failure(events: list[dict[str, Any]], log_folder: str, beside: str = "") -> NoReturn:
    """Raise the cause among the failures of several workers.

    ``beside``: what else is to be told.

    Raises:
        UserError: where the cause is a mistake of the user; the message alone.
        RunFailed: otherwise, with the failing worker's traceback.
    """
    first = _first(events)
    if first["user_message"] is not None:
        raise UserError(first["user_message"] + beside)
    raise RunFailed(
        f"{_who(first)} failed:\n{first['trace'].rstrip()}\n(worker logs: {log_folder})" + beside
    )


def _who(event: dict[str, Any]) -> str:
    return "a worker" if event["rank"] is None else f"worker {event['rank']}"


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

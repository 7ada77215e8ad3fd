"""What all kinds of clusters have in common: a job, and what can be asked of where it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from dist_embed.config.paths import path_of
from dist_embed.errors import UserError

POLL_SECONDS = 2.0
SILENT_SECONDS = 300.0  # that a cluster may give no answer to one who follows a job


@dataclass(frozen=True)
class Job:
    """What its cluster says of a job.

    Attributes:
        name: by which the cluster knows it.
        state: in the cluster's words, ``RUNNING``.
        is_over: whether it has ended, and will not begin again.
        run_uri: of the run.
        running_for: hours, minutes and seconds.
        reason: why it waits, or why it never ran, where there is something to say.
        output: file or page of what the job has said.
        exit_code: as a shell has it; only told of a job that has ended.
    """

    name: str
    state: str
    is_over: bool
    run_uri: str
    running_for: str
    reason: str
    output: str
    exit_code: int


class NoOutput(UserError):
    """What a job has written is not where it would be read: elsewhere, or not there yet."""


class Cluster(Protocol):
    """Where jobs are. All raise UserError where it does not answer, or not as hoped."""

    def jobs(self) -> list[Job]:
        """Those that `dist-embed submit` has sent and it still knows."""

    def job(self, name: str) -> Job:
        """One by its name."""

    def stop(self, name: str) -> Job:
        """Ask a job to end: a run saves after its step; one that has not begun is taken back."""

    def said(self, job: Job, since: int) -> bytes:
        """What a job has written, from that byte on."""


def check_is_free(run_uri: str, jobs: Iterable[Job]) -> None:
    """Raises UserError where one of a cluster's ``jobs`` has that run, and has not ended."""
    for job in jobs:
        if _where(job.run_uri) == _where(run_uri) and not job.is_over:
            raise UserError(
                f"run.uri: {run_uri!r} is the run of job {job.name}, which has not ended "
                f"({job.state.lower()}): `dist-embed stop {job.name}` asks it to, `dist-embed logs "
                f"--follow {job.name}` waits for its end; or another run.uri"
            )


def _where(run_uri: str) -> str:
    """The same for all ways to write where a run lies."""
    path = path_of(run_uri)
    return run_uri.rstrip("/") if path is None else os.path.normpath(path)


def follow(
    cluster: Cluster, name: str, say: Callable[[bytes], None], say_wait: Callable[[Job], None]
) -> Job:
    """Give ``say`` what the job writes, from its beginning on, until it has ended; if that is
    nowhere then, why. ``say_wait`` gets the job while it waits, whenever the reason is another.
    """
    found, place, heard, waited_for = cluster.job(name), 0, time.monotonic(), ""
    while True:
        if found.reason != waited_for and not found.is_over:
            waited_for = found.reason
            if waited_for:
                say_wait(found)
        try:
            asked = time.monotonic()
            try:
                more = cluster.said(found, place)
            except NoOutput as exc:
                more = f"{exc}\n".encode() if found.is_over else b""
            if more:
                say(more)
            place += len(more)
            if found.is_over:
                return found
            # Where all that was ever said has to come anew, it comes seldom.
            time.sleep(max(POLL_SECONDS, 10 * (time.monotonic() - asked)))
            found, heard = cluster.job(name), time.monotonic()
        except UserError:  # of hours of asking one may fail
            if time.monotonic() - heard > SILENT_SECONDS:
                raise
            time.sleep(POLL_SECONDS)

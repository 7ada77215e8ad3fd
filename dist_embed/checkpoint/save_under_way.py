"""One save under way: what has come of it on a worker, how long it is waited for, and what is told
of it when it has ended.
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass, field

from dist_embed.checkpoint.manifest import CheckpointConflict, CheckpointError, Manifest
from dist_embed.checkpoint.parts import PartMissing
from dist_embed.errors import UserError
from dist_embed.parallel.errors import is_passing

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Save:
    """One save under way: a thread of its own, and what has come of it on this worker.

    Attributes:
        step: that is saved.
        attempt: its name.
        started: when the call began; ``stood_seconds`` later training went on.
        hurried: set when nobody has time to wait for what can be left out.
        overdue: whether it has had its time: all workers have waited for it in vain.
        given_up: set when nobody waits for it any more: its thread ends as soon as it sees that.
        num_chunks: written by this worker so far.
        heard: when it has last come further on this worker.
        manifest: on worker 0, once it is published, at ``published``.
        error: why it has failed.
        notes: for the user.
    """

    step: int
    attempt: str
    started: float
    stood_seconds: float
    hurried: threading.Event = field(default_factory=threading.Event)
    overdue: bool = False
    given_up: threading.Event = field(default_factory=threading.Event)
    num_chunks: int = 0
    heard: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None
    manifest: Manifest | None = None
    published: float = 0.0
    error: Exception | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether its thread has."""
        return self.thread is not None and not self.thread.is_alive()

    def go_on(self) -> None:
        """Raise CheckpointError once it is given up."""
        if self.given_up.is_set():
            raise CheckpointError(
                f"the checkpoint of step {self.step} was given up: the run has ended"
            )


class Deadline:
    """How long a save is waited for: ``seconds`` from now on, unless it is told otherwise."""

    def __init__(self, seconds: float) -> None:
        self._stopping = False
        self._begin(seconds)

    def _begin(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._at - time.monotonic()

    def progress(self) -> None:
        """The save goes on: all the time begins anew."""
        self._begin(self.seconds)

    def asked_to_stop(self, drain_seconds: float) -> None:
        """The run is to stop: from the first call on there are ``drain_seconds``, if not less."""
        if not self._stopping and drain_seconds < self.left:
            self._begin(drain_seconds)
        self._stopping = True


@dataclass(frozen=True)
class Outcome:
    """What a worker tells of a save that has ended.

    Attributes:
        saved: on worker 0, if it is published: how large it is, how long it took.
        error: why it has failed.
        relayed: whether the cause is another worker's.
        passing: whether it may go well when the run is started again.
        fatal: whether the run is to stop for it.
    """

    saved: str
    error: str
    relayed: bool
    passing: bool
    fatal: bool


def outcome_of(save: Save) -> Outcome:
    """Of a save that has ended on this worker."""
    error, saved = save.error, ""
    if save.manifest is not None:
        saved = (
            f"{save.manifest.size_bytes / 2**20:.1f} MiB in {save.published - save.started:.1f} s, "
            f"training stood {save.stood_seconds:.2f} s"
        )
    full = isinstance(error, OSError) and error.errno in _NO_ROOM
    return Outcome(
        saved=saved,
        error="" if error is None else one_line(error),
        relayed=isinstance(error, PartMissing),
        passing=error is not None and is_passing(error),
        fatal=full or isinstance(error, CheckpointConflict),
    )


def one_line(error: Exception) -> str:
    """What an error says, for a line of its own."""
    plain = isinstance(error, UserError | OSError)
    if plain and str(error):
        return str(error)
    # What torch raises ends with a trace of its own.
    return f"{type(error).__name__}: {error}".split("\n")[0]

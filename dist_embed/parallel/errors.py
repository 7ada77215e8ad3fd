"""Errors that travel: what fails on one worker is raised on all, with its own traceback.

Two cases. Where workers do something each on their own (read a file, write a checkpoint part),
`all_or_none` closes the phase with one exchange, and raises on every worker when one has failed.
Anywhere else a failing worker leaves its traceback in the group's store and breaks its connections,
and its peers, whose collectives then break, look there for the cause: `errors_shared`.
"""

from __future__ import annotations

import errno
import json
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_embed.errors import StoreUnavailable, UserError, causes
from dist_embed.parallel.collectives import gather_texts
from dist_embed.parallel.group import Group

# How long a worker whose collective broke waits for a peer to say why, and how long worker 0,
# which may host the store, stays at most after its own failure so that peers can read it.
# Calls of the store have no limit of their own: those of a failing worker have thrice that.
CAUSE_WAIT_SECONDS = 5.0
_KEY = "dist_embed/first_error"
_READERS = "dist_embed/first_error_readers"
_NETWORK_FAULTS = (errno.ETIMEDOUT, errno.ESTALE)  # of a shared file system
# What cudaGetErrorString says of errors that code or its arguments make: they come again.
_NO_FAULTS_OF_DEVICES = (
    "device-side assert triggered", "illegal memory access", "misaligned address", "invalid ",
    "no kernel image", "out of memory",
)  # fmt: skip
# Of concurrent.futures, and from Python 3.12 on of threading, before the main thread has ended.
_INTERPRETER_ENDS = "interpreter shutdown"
_TAG = 19_000_001  # of messages that nobody sends
_TOLD = "_dist_embed_told"  # an attribute of errors that every worker knows of


class WorkerError(RuntimeError):
    """Another worker failed; the message holds its traceback.

    Attributes:
        rank: which worker.
        trace: its traceback.
        user_message: see the function of that name.
        is_cause: whether the error is that worker's own, not a collective that a third one broke.
        is_passing: see the function of that name.
    """

    def __init__(
        self,
        rank: int,
        trace: str,
        user_message: str | None = None,
        is_cause: bool = True,
        is_passing: bool = False,
    ) -> None:
        self.rank = rank
        self.trace = trace
        self.user_message = user_message
        self.is_cause = is_cause
        self.is_passing = is_passing
        super().__init__(f"worker {rank} failed:\n{trace}")

    def __reduce__(self) -> tuple[type[WorkerError], tuple[Any, ...]]:
        values = (self.rank, self.trace, self.user_message, self.is_cause, self.is_passing)
        return type(self), values


class Hangs(Exception):
    """This worker makes no progress; its traceback is where it was seen."""


def user_message(exc: BaseException) -> str | None:
    """The message, where it says all that a user needs: of a `UserError`, and of an `OSError`.

    The latter names the file and what the system has against it.
    """
    return str(exc) if isinstance(exc, UserError | OSError) else None


@contextmanager
def all_or_none(group: Group) -> Iterator[None]:
    """Run a block without collectives in it; if it fails anywhere, raise everywhere.

    The failing worker raises its own error, the others a `WorkerError` with its traceback.
    Collective at the end of the block.
    """
    error: BaseException | None = None
    try:
        yield
    except Exception as exc:  # carried to every worker below
        error = exc
    told = gather_texts("" if error is None else _account(group.rank, error), group)
    if error is not None:
        setattr(error, _TOLD, True)
        raise error
    for account in told:
        if account:
            raise WorkerError(**json.loads(account))


@contextmanager
def errors_shared(group: Group) -> Iterator[None]:
    """Wrap a worker's whole run: its error reaches the peers, and a peer's error this worker.

    Not collective: a worker that fails does not wait for the others, but worker 0, for up to
    `CAUSE_WAIT_SECONDS`, until they have read an error that `all_or_none` has not carried.
    """
    store = dist.distributed_c10d._get_default_store()  # no public accessor exists
    try:
        yield
    except WorkerError:
        raise
    except Exception as exc:
        # First: the store may not answer, and peers are not to wait for this worker meanwhile. But
        # peers that are being told of it must not have that broken off.
        if not getattr(exc, _TOLD, False):
            _break_connections(group)
        cause = _exchange_causes(store, group, exc)
        if cause is not None:
            raise cause from exc
        raise


def is_broken_collective(exc: BaseException) -> bool:
    """Whether ``exc`` is a torch collective that a peer broke or left, or that timed out, or a
    store that is not there any more.
    """
    if isinstance(exc, dist.DistNetworkError):
        return True
    text = str(exc)
    signs = ("gloo", "NCCL", "Connection", "Broken pipe", "timeout", "Timed out")
    return isinstance(exc, RuntimeError) and any(sign in text for sign in signs)


def is_passing(exc: BaseException) -> bool:
    """Whether the same may go well when it is tried again: a peer, a connection or a device was
    lost, a store was unavailable, or something took too long. Errors of data, configuration or code
    come again.
    """
    # The interpreter ends, as where a worker of Ray gets SIGTERM, and the worker's own thread goes
    # on: it fails at whatever has been closed by then.
    if not threading.main_thread().is_alive():
        return True
    for step in causes(exc):
        if isinstance(step, WorkerError):
            return step.is_passing
        if isinstance(step, StoreUnavailable | ConnectionError | TimeoutError | Hangs):
            return True
        if is_broken_collective(step):
            return True
        if isinstance(step, RuntimeError) and _INTERPRETER_ENDS in str(step):
            return True
        if isinstance(step, OSError) and step.errno in _NETWORK_FAULTS:
            return True
        if isinstance(step, torch.AcceleratorError):
            return not any(text in str(step) for text in _NO_FAULTS_OF_DEVICES)
    return False


def _exchange_causes(store: Any, group: Group, exc: Exception) -> WorkerError | None:
    """Another worker's error, if it is the cause of this one; else this one is left for the peers.

    What is no cause itself, but a collective that a peer broke, gives way to this one where it is.

    In a thread: a call of the store of a machine that stands still does not return (torch 2.13).
    On a connection of its own: the one there is may be gone, as nothing has used it for long.
    """
    causes: list[WorkerError] = []
    is_echo = is_broken_collective(exc)

    def exchange() -> None:
        with suppress(RuntimeError, ValueError):  # the store may have died with its host
            own = store.clone()
            account = _read_cause(own, wait=is_echo) or ""
            # Of failures at the same moment the first to be written counts.
            while not account or not (is_echo or json.loads(account)["is_cause"]):
                own_account = _account(group.rank, exc)
                account = own.compare_set(_KEY, account, own_account).decode()
            cause = WorkerError(**json.loads(account))
            if cause.rank != group.rank:
                causes.append(cause)
                own.add(_READERS, 1)
            elif group.is_first and not getattr(exc, _TOLD, False):
                _wait_for_readers(own, group)

    if group.num_workers > 1:
        thread = threading.Thread(target=exchange, daemon=True)
        thread.start()
        thread.join(3 * CAUSE_WAIT_SECONDS)
    return causes[0] if causes else None


def _read_cause(store: Any, *, wait: bool) -> str | None:
    """A worker's `_account`, if there is one."""
    try:
        if wait:
            store.wait([_KEY], timedelta(seconds=CAUSE_WAIT_SECONDS))
        elif not store.check([_KEY]):
            return None
        account: str = store.get(_KEY).decode()
        return account
    except (RuntimeError, ValueError):  # nobody said anything, or the store died with its host
        return None


def _break_connections(group: Group) -> None:
    """Make collectives that peers wait in for this worker fail now.

    Else they fail when this process ends, and with it the store if it is hosted here. gloo closes
    all connections of a group in which one wait has run out, and has no other call for it.
    """
    if group.num_workers == 1 or group.device.type != "cpu":
        return
    peer = (group.rank + 1) % group.num_workers
    with suppress(RuntimeError):
        waiting = group.process_group.recv([torch.zeros(1)], peer, _TAG)
        waiting.wait(timedelta(milliseconds=1))


def _wait_for_readers(store: Any, group: Group) -> None:
    """Give all peers the time to read what has been left in the store."""
    give_up_at = time.monotonic() + CAUSE_WAIT_SECONDS
    while store.add(_READERS, 0) < group.num_workers - 1 and time.monotonic() < give_up_at:
        time.sleep(0.02)


def _account(rank: int, error: BaseException) -> str:
    """The arguments of the `WorkerError` that peers raise."""
    return json.dumps(
        {
            "rank": rank,
            "trace": "".join(traceback.format_exception(error)),
            "user_message": user_message(error),
            "is_cause": not is_broken_collective(error),
            "is_passing": is_passing(error),
        }
    )

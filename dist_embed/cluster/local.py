"""Workers as plain processes of this machine, without Ray."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from dist_embed.cluster.failure import (
    FAREWELL_SECONDS,
    asked_to_stop,
    failure_event,
    raise_failure,
    stopped_too_late,
)
from dist_embed.cluster.feed import Feed
from dist_embed.cluster.fork_server import worker_context
from dist_embed.cluster.mailbox import Mailbox, receiver, sender
from dist_embed.errors import RunFailed, RunStopped, in_a_line
from dist_embed.observe.events import Event
from dist_embed.parallel.hang import failures_told_by
from dist_embed.parallel.main_module import without_main_module
from dist_embed.parallel.parent import end_with_parent
from dist_embed.parallel.peers import peers_have_time
from dist_embed.parallel.rendezvous import LOOPBACK, hosted_store
from dist_embed.parallel.safe_path import safe_path
from dist_embed.parallel.stop import (
    deaf_children,
    hear_sigterm,
    stop_on_signals,
    stop_requested,
)

# After a worker was killed the others get this long to end by themselves, so that the cause, not
# its echo, is found.
GRACE_SECONDS = 10.0


def launch_local(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    num_workers: int,
    on_event: Callable[[Event], None],
    log_folder: str,
    stop_seconds: float = 0.0,
    save_seconds: float = 0.0,
    device: str = "cpu",
    feed: Feed | None = None,
) -> Any:
    """Run ``target(*args, emit)`` in ``num_workers`` processes; returns worker 0's result.

    ``target`` is importable: the processes do not import this one's main module.
    Each process gets the environment of ``torchrun`` (RANK, WORLD_SIZE, …). When one fails, the
    others are ended: when one has told its error, not before those that finish a save have had
    ``save_seconds`` for it; when one was killed, after `GRACE_SECONDS`, though a save may be
    under way; once worker 0 has told its result, after `FAREWELL_SECONDS`. With ``stop_seconds``
    a signal that asks this process to stop is passed on to the workers as SIGTERM, and they get
    that long to end by themselves. With a ``feed`` it is ``target(*args, emit, receive)``, where
    worker 0 receives what that answers.

    Raises:
        UserError: a worker raised one.
        RunFailed: a worker failed or was killed.
        RunStopped: asked to stop, workers ended that were not ready yet to do so by themselves.
    """
    # The launcher hosts the rendezvous store, so it outlives any worker and no port is guessed.
    store = hosted_store()
    context = worker_context(device)
    mailbox = Mailbox()
    processes: list[BaseProcess] = []
    with stop_on_signals() if stop_seconds else nullcontext():
        try:
            for rank in range(num_workers):
                opened = mailbox.opened(context, rank)
                with opened as writer, safe_path(), deaf_children(), without_main_module():
                    process = context.Process(
                        target=_child, daemon=True,
                        args=(target, args, rank, num_workers, store.port, writer, bool(feed)),
                    )  # fmt: skip
                    processes.append(process)
                    _start(process)
            return _watch(
                processes, mailbox, on_event, log_folder, stop_seconds, save_seconds, feed
            )
        finally:
            _end(processes)


def _start(process: BaseProcess) -> None:
    try:
        process.start()
    except (ConnectionError, EOFError) as exc:
        raise RunFailed(
            f"no worker can be started ({in_a_line(exc)}): the process that they are copies of has "
            f"ended, often for lack of memory, or cannot run {sys.executable}"
        ) from exc


def _watch(
    processes: Sequence[BaseProcess],
    mailbox: Mailbox,
    on_event: Callable[[Event], None],
    log_folder: str,
    stop_seconds: float,
    save_seconds: float,
    feed: Feed | None = None,
) -> Any:
    """Pass on events until every worker is done or one has failed."""
    stop_until: float | None = None
    failures: list[Event] = []
    result: Any = None
    give_up_at: float | None = None
    leave_until: float | None = None
    while True:
        if stop_seconds and stop_requested() and stop_until is None:
            stop_until = time.monotonic() + stop_seconds
            for process in processes:
                process.terminate()
            on_event(asked_to_stop())  # afterwards: a terminal may stand still
        if feed is not None and (answer := feed.answer()) is not None:
            mailbox.answer(answer)
        # Look at the processes before the mailbox: what they sent before they ended is then in it.
        alive = any(process.is_alive() for process in processes)
        ended = {i: p.exitcode for i, p in enumerate(processes) if p.exitcode not in (None, 0)}
        if not alive:
            mailbox.wait_for_the_rest()
        event = mailbox.get(0.1)
        if event is not None:
            if event["kind"] == "failure":
                failures.append(event)
            elif event["kind"] == "result":
                result = event["value"]
                leave_until = time.monotonic() + FAREWELL_SECONDS
            else:
                on_event(event)
            continue
        if (failures or ended) and give_up_at is None:
            give_up_at = time.monotonic() + GRACE_SECONDS + (save_seconds if failures else 0)
        if leave_until is None and stop_until is not None and time.monotonic() > stop_until:
            raise RunFailed(stopped_too_late(stop_seconds))
        limits = [limit for limit in (give_up_at, leave_until) if limit is not None]
        if not alive or (limits and time.monotonic() > max(limits)):
            break
    _raise_what_failed(
        failures, ended, log_folder, has_result=result is not None, stopping=stop_until is not None
    )
    return result


def _raise_what_failed(
    failures: list[Event],
    ended: dict[int, int],
    log_folder: str,
    *,
    has_result: bool,
    stopping: bool,
) -> None:
    """Raise the error of workers that have not ended well, unless the task is done all the same.

    Args:
        failures: what workers have told.
        ended: exit codes, by rank, of those that have not ended well.
        log_folder: named in messages.
        has_result: whether worker 0 has given its result.
        stopping: whether the workers have been asked to stop.
    """
    # A worker that said why it failed counts before one that was ended from outside, and both
    # before one whose collective a peer broke.
    if any(failure["is_cause"] for failure in failures):
        raise_failure(failures, log_folder)
    if stopping and has_result:
        return  # a worker that SIGTERM has ended since had done its part
    said = {failure["teller"] for failure in failures}
    silent = {rank: code for rank, code in ended.items() if rank not in said}
    if stopping and silent and all(code == -signal.SIGTERM for code in silent.values()):
        raise RunStopped("stopped as asked, before the workers had begun")
    if silent:
        rank, code = next(iter(silent.items()))
        raise RunFailed(
            f"worker {rank} was ended from outside (exit code {code}"
            + ("; signal 9: killed, often for lack of memory" if code == -9 else "")
            + f"); worker logs: {log_folder}"
        )
    if failures:
        raise_failure(failures, log_folder)


def _end(processes: Sequence[BaseProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join()


def _child(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    num_workers: int,
    store_port: int,
    writer: Connection,
    receives: bool,
) -> None:
    hear_sigterm()
    end_with_parent()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_workers),
        LOCAL_WORLD_SIZE=str(num_workers),
        MASTER_ADDR=LOOPBACK,
        MASTER_PORT=str(store_port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the launcher hosts the store
        **peers_have_time(),
    )
    emit = sender(writer)
    failures_told_by(lambda exc: emit(failure_event(rank, exc)))
    try:
        value = target(*args, emit, *([receiver(writer)] if receives else []))
        if rank == 0:
            emit({"kind": "result", "value": value})
    except BaseException as exc:
        emit(failure_event(rank, exc))
        os._exit(1)

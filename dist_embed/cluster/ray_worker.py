"""The worker's end of a start by Ray Train.

What starts the workers imports this module too, and should not have to wait for PyTorch: only the
functions import it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import ray
import ray.train
from ray import cloudpickle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from dist_embed.installed import check_version, own_version
from dist_embed.observe.events import Event
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.stop import request_stop

POLL_SECONDS = 1.0
ANSWER_SECONDS = 0.2
MAILBOX_SECONDS = 60.0


def work_for(
    target: Callable[..., Any], args: tuple[Any, ...], mailbox: Any, start: int, name: str,
    *, receives: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What `work` is handed. ``target`` and its arguments are sealed: to open them means to import
    what they are made of, which Ray's controller has no use for.
    """
    sealed = cloudpickle.dumps((target, args))
    return {
        "sealed": sealed, "mailbox": mailbox, "start": start, "name": name, "receives": receives,
        "version": own_version(),
    }  # fmt: skip


def work(handed: dict[str, Any]) -> None:
    """Run a worker's part; what it tells the mailbox bears the number of its start."""
    mailbox, start = handed["mailbox"], handed["start"]
    rank = ray.train.get_context().get_world_rank()

    def emit(event: Event) -> None:
        mailbox.put.remote(event | {"start": start})

    def tell(event: Event) -> None:
        ray.get(mailbox.put.remote(event | {"start": start}), timeout=MAILBOX_SECONDS)

    def receive(number: int, seconds: float) -> Event | None:
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at:
            asked = mailbox.answered.remote(start, number)
            with suppress(GetTimeoutError):  # it is asked again
                left = max(ANSWER_SECONDS, give_up_at - time.monotonic())
                if (answer := ray.get(asked, timeout=left)) is not None:
                    return cast(Event, answer)
            time.sleep(ANSWER_SECONDS)
        return None

    tell({"kind": "begin", "node": ray.get_runtime_context().get_node_id()})
    with collector_off():
        from dist_embed.cluster.failure import failure_event
        from dist_embed.cluster.ray_metrics import also_as_gauges
        from dist_embed.parallel.hang import failures_told_by

    failures_told_by(lambda exc: tell(failure_event(rank, exc)))

    ended = threading.Event()
    if rank == 0:  # one worker that knows is enough
        threading.Thread(target=_listen_for_stop, args=(mailbox, start, ended), daemon=True).start()
    try:
        check_version(handed.get("version", ""), "the command has")
        with collector_off():
            target, args = cloudpickle.loads(handed["sealed"])
        received = [receive] if handed["receives"] else []
        value = target(*args, also_as_gauges(emit, handed["name"]), *received)
    except Exception as exc:
        tell(failure_event(rank, exc))
        raise
    finally:
        ended.set()
    if rank == 0:
        tell({"kind": "result", "value": value})


def _listen_for_stop(mailbox: Any, start: int, ended: threading.Event) -> None:
    while not ended.wait(POLL_SECONDS):
        try:
            if ray.get(mailbox.is_stopped.remote(start), timeout=MAILBOX_SECONDS):
                request_stop()
                return
        except ActorDiedError:  # without a launcher nobody asks
            return
        except RayError:  # it has not answered this time
            continue

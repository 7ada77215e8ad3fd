"""What workers tell, also those that are killed while they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import pytest

from dist_embed.cluster import mailbox as module
from dist_embed.cluster.mailbox import Mailbox, receiver, sender

FORK = multiprocessing.get_context("fork")


def tell(writer: Connection, count: int) -> None:
    emit = sender(writer)
    threads = [
        threading.Thread(target=emit, args=({"kind": "line", "text": "x" * 100_000},))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def half(writer: Connection) -> None:
    sender(writer)({"kind": "line", "text": "whole"})
    os.write(writer.fileno(), (5_000_000).to_bytes(4, "big") + b"the beginning of an event")
    os.kill(os.getpid(), signal.SIGKILL)


def leave_child(writer: Connection) -> None:
    """Tells the id of a child that holds its pipe for ever, and ends."""
    child = os.fork()
    while child == 0:
        signal.pause()
    sender(writer)({"kind": "line", "child": child})
    os._exit(0)


def converse(writer: Connection) -> None:
    emit, receive = sender(writer), receiver(writer)
    emit({"kind": "line", "received": receive(0, 0.0)})
    emit({"kind": "line", "received": receive(1, 60.0)})


class Unreadable:
    """What only the worker can make again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def tell_unreadable(writer: Connection) -> None:
    emit = sender(writer)
    emit({"kind": "result", "value": Unreadable()})
    emit({"kind": "line", "text": "after it"})


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


def begun(mailbox: Mailbox, *targets: tuple) -> None:  # type: ignore[type-arg]
    for rank, (target, *arguments) in enumerate(targets):
        with mailbox.opened(FORK, rank) as writer:
            process = FORK.Process(target=target, args=(writer, *arguments), daemon=True)
            process.start()
    process.join()


def test_events_of_several_threads_and_workers_arrive_whole(mailbox: Mailbox) -> None:
    begun(mailbox, (tell, 20), (tell, 30))
    mailbox.wait_for_the_rest()
    events = [mailbox.get(0) for _ in range(50)]
    assert all(event == {"kind": "line", "text": "x" * 100_000} for event in events)
    assert mailbox.get(0) is None


def test_one_killed_while_it_writes_holds_up_nobody(mailbox: Mailbox) -> None:
    begun(mailbox, (half,), (tell, 1))
    mailbox.wait_for_the_rest()
    said = [mailbox.get(0), mailbox.get(0)]
    assert sorted(len(event["text"]) for event in said if event) == [5, 100_000]
    assert mailbox.get(0) is None


def test_a_child_of_a_worker_is_not_waited_for_without_end(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_SECONDS", 0.2)
    begun(mailbox, (leave_child,))
    told = mailbox.get(30)
    assert told is not None
    try:
        for _ in range(3):
            waiting = threading.Thread(target=mailbox.wait_for_the_rest, daemon=True)
            waiting.start()
            waiting.join(30)
            assert not waiting.is_alive()
            assert mailbox.get(0) is None
    finally:
        os.kill(told["child"], signal.SIGKILL)


def test_what_cannot_be_read_is_a_failure_of_its_worker_and_the_next_is_heard(
    mailbox: Mailbox,
) -> None:
    begun(mailbox, (tell, 0), (tell_unreadable,))
    failure, line = mailbox.get(30), mailbox.get(30)
    assert failure is not None
    assert (failure["kind"], failure["teller"], failure["is_cause"]) == ("failure", 1, True)
    assert "no number" in failure["trace"]
    assert line == {"kind": "line", "text": "after it"}


def test_worker_0_receives_what_it_is_answered(mailbox: Mailbox) -> None:
    with mailbox.opened(FORK, 0) as writer:
        process = FORK.Process(target=converse, args=(writer,), daemon=True)
        process.start()
    assert mailbox.get(30) == {"kind": "line", "received": None}
    answer = {"number": 1, "lines": ["x" * 1_000_000]}
    mailbox.answer(answer)
    assert mailbox.get(30) == {"kind": "line", "received": answer}
    process.join()
    mailbox.wait_for_the_rest()
    mailbox.answer(answer)  # nobody is there any more, which is seen otherwise

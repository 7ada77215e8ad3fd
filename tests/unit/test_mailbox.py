"""What workers tell, also those that are killed while they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest

from dist_embed.cluster import mailbox as module
from dist_embed.cluster.mailbox import Mailbox, sender

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


def open_child(writer: Connection) -> None:
    """Ends, and leaves a child that holds its pipe."""
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


def begun(mailbox: Mailbox, *targets: tuple) -> None:  # type: ignore[type-arg]
    for target, *arguments in targets:
        with mailbox.opened(FORK) as writer:
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
    begun(mailbox, (open_child,))
    for _ in range(3):
        mailbox.wait_for_the_rest()
        assert mailbox.get(0) is None

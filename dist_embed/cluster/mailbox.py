"""What workers on this machine tell their launcher, and what it answers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from dist_embed.cluster.failure import failure_event
from dist_embed.observe.events import Event

# Beyond the end of the processes: a child of theirs may hold a pipe open.
REST_SECONDS = 5.0


class Mailbox:
    """Takes events from a pipe for each worker, at once, however long the launcher shows one.

    With one queue for all, a worker that is killed while it writes would leave the others waiting
    for the queue's lock, and the launcher for the rest of an event: `multiprocessing.Queue.get`
    minds its limit only until an event begins.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._listeners: list[threading.Thread] = []
        self._first: Connection | None = None
        self._rest_until: float | None = None

    @contextmanager
    def opened(self, context: BaseContext, rank: int) -> Iterator[Connection]:
        """The end of a pipe for the worker of a rank; to be handed to its process within the block,
        after which that is the only one that holds it.
        """
        reader, writer = context.Pipe()
        with writer:
            yield writer
        if rank == 0:
            self._first = reader
        listener = threading.Thread(target=self._listen, args=(reader, rank), daemon=True)
        listener.start()
        self._listeners.append(listener)

    def get(self, seconds: float) -> Event | None:
        """The next event; None where none comes for so long."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None

    def answer(self, answer: Event) -> None:
        """To worker 0, which waits for it; whether that has ended is seen otherwise."""
        assert self._first is not None
        with suppress(OSError):
            self._first.send(answer)

    def wait_for_the_rest(self) -> None:
        """Until all that ended workers have told can be got, at most `REST_SECONDS` in all."""
        self._rest_until = self._rest_until or time.monotonic() + REST_SECONDS
        for listener in self._listeners:
            listener.join(max(0.0, self._rest_until - time.monotonic()))

    def _listen(self, reader: Connection, rank: int) -> None:
        with reader, suppress(EOFError, OSError):  # half an event is none
            while True:
                try:
                    event = reader.recv()
                except (EOFError, OSError):
                    raise
                except Exception as exc:  # a result of a class that only the worker can make
                    event = failure_event(rank, exc)
                self._events.put(event)


def sender(writer: Connection) -> Callable[[Event], None]:
    """What a worker tells events with, from any of its threads. In the launcher a thread takes
    them, so that the pipe is never full for long.
    """
    lock = threading.Lock()

    def send(event: Event) -> None:
        with lock:
            writer.send(event)

    return send


def receiver(reader: Connection) -> Callable[[int, float], Event | None]:
    """`Receive` of `training.worker`, by the pipe that the worker tells events with."""

    def receive(number: int, seconds: float) -> Event | None:
        return reader.recv() if reader.poll(seconds) else None

    return receive

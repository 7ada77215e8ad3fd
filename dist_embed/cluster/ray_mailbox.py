"""What launcher and workers tell each other, wherever they run.

It imports nothing: in the process that has it nobody waits for PyTorch, or for Ray Train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dist_embed.observe.events import Event


class RayMailbox:
    """An actor: events go one way, answers and the request to stop go the other."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stopped = -1
        self._answer: tuple[int, Event] | None = None

    def put(self, event: Event) -> None:
        """Of a worker."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """What has come since, for the launcher."""
        events, self._events = self._events, []
        return events

    def answer(self, start: int, answer: Event) -> None:
        """To worker 0 of this start, in place of the answer before."""
        self._answer = start, answer

    def answered(self, start: int, number: int) -> Event | None:
        """The answer with this number, if it is there; each time again."""
        if self._answer is None:
            return None
        asked_by, answer = self._answer
        return answer if (asked_by, answer["number"]) == (start, number) else None

    def stop(self, start: int) -> None:
        """Ask the workers of this start, and of those before it."""
        self._stopped = start

    def is_stopped(self, start: int) -> bool:
        """Whether they are asked to."""
        return start <= self._stopped

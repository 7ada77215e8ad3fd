"""The host's clock, and a GPU's, which its host reads without waiting for it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import torch


class Clock(ABC):
    """Marks moments, and tells the seconds between two of them."""

    @abstractmethod
    def mark(self) -> Any:
        """Now."""

    @abstractmethod
    def has_passed(self, moment: Any) -> bool:
        """Whether a moment is over, so that `between` may be asked for it."""

    @abstractmethod
    def between(self, begin: Any, end: Any) -> float:
        """Seconds."""

    @abstractmethod
    def give_back(self, *moments: Any) -> None:
        """That nobody needs these any more."""


def clock_of(device: torch.device) -> Clock:
    """A GPU's own, else the host's."""
    return _DeviceClock() if device.type == "cuda" else _HostClock()


class _HostClock(Clock):
    def mark(self) -> float:
        return time.perf_counter()

    def has_passed(self, moment: float) -> bool:
        return True

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def give_back(self, *moments: float) -> None: ...


class _DeviceClock(Clock):
    """By events in the device's stream. What the host alone does between two moments counts as long
    as the device waits for it.
    """

    def __init__(self) -> None:
        self._unused: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        event = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def has_passed(self, moment: torch.cuda.Event) -> bool:
        return moment.query()

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1e3

    def give_back(self, *moments: torch.cuda.Event) -> None:
        self._unused += moments

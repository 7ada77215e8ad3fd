"""How long passes over the same work take on one device, phase by phase, and in what memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

import torch

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.observe.clocks import clock_of

WARM_UP = 3  # passes that are not timed; the memory is that of the last of them
Item = TypeVar("Item")
Result = TypeVar("Result")


class Marks:
    """The ends of a pass's phases, by the device's clock: its host waits for nothing in between.

    The first phase begins when this is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clock = clock_of(device)
        self._phases: list[str] = []
        self._moments: list[Any] = []
        self._note()

    def __call__(self, phase: str) -> None:
        """``phase`` ends here, and the next one begins."""
        self._phases.append(phase)
        self._note()

    def _note(self) -> None:
        self._moments.append(self._clock.mark())

    def seconds(self) -> dict[str, float]:
        """By phase; a GPU is waited for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        ends = zip(self._phases, self._moments, self._moments[1:], strict=False)
        return {phase: self._clock.between(begun, ended) for phase, begun, ended in ends}


@dataclass(frozen=True)
class Passes(Generic[Result]):
    """What was measured.

    Attributes:
        seconds: by phase those of every pass.
        beyond_bytes: the most that was held at once beyond what is held after a pass with its
            result: on CUDA of tensors, on the CPU of the process's resident memory.
        result: of the last pass.
    """

    seconds: dict[str, list[float]]
    beyond_bytes: int
    result: Result


def measured(
    one_pass: Callable[[Marks], Result], device: torch.device, repeats: int
) -> Passes[Result]:
    """Make ``one_pass`` `WARM_UP` times, and ``repeats`` times more by the clock.

    Every pass begins on an idle device.
    """
    seconds: dict[str, list[float]] = {}
    result: Result | None = None
    beyond = 0
    for number in range(WARM_UP + repeats):
        result = None  # before the next one is made
        if number == WARM_UP - 1:
            _reset_peak(device)
        marks = Marks(device)
        result = one_pass(marks)
        found = marks.seconds()
        if number == WARM_UP - 1:
            beyond = _beyond(device)
        if number >= WARM_UP:
            for phase, taken in found.items():
                seconds.setdefault(phase, []).append(taken)
    assert result is not None
    return Passes(seconds, beyond, result)


def median_seconds(
    call: Callable[[Item], object], items: Sequence[Item], device: torch.device
) -> float:
    """Of ``call`` on each item, when the device has nothing else to do, until all that it asks of
    the device is done; the first `WARM_UP` do not count.
    """
    taken = []
    for item in items:
        marks = Marks(device)
        call(item)
        marks("call")
        taken.append(marks.seconds()["call"])
    return median(taken[WARM_UP:])


def copy_seconds(size: int, repeats: int, device: torch.device) -> float:
    """Median of copying ``size`` bytes within the device."""
    one, two = (torch.ones(size // 4, device=device) for _ in range(2))
    return median_seconds(lambda _: one.copy_(two), range(WARM_UP + repeats), device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _give_back_freed_memory()
        reset_peak()


def _beyond(device: torch.device) -> int:
    """The peak since `_reset_peak` less what is held now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    peak = peak_bytes()
    _give_back_freed_memory()
    return max(0, peak - reset_peak())


def _give_back_freed_memory() -> None:
    """What this process has freed and its allocator keeps is resident, but not held."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)

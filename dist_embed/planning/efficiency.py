"""How well more workers are used: one rule for plans, runs and simulated sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """So many workers, and how fast they are.

    Attributes:
        workers: W.
        threads: of each, on a CPU; with GPUs 1.
        speed: tokens a second; None: not known.
        counts: whether it can be: it has been run, or fits, and has no more threads than cores,
            which would measure how they take turns.
    """

    workers: int
    threads: int
    speed: float | None
    counts: bool

    @property
    def of_each(self) -> float | None:
        """Speed of a thread, or GPU."""
        return self.speed / (self.workers * self.threads) if self.speed else None


def efficiencies(sizes: Sequence[Size]) -> tuple[int | None, list[float | None]]:
    """By the fewest workers that count: how many those are, and of each size its speed for each
    thread, or GPU, by theirs; None of others than count.
    """
    base = min((one for one in sizes if one.counts), key=lambda one: one.workers, default=None)
    if base is None:
        return None, [None] * len(sizes)
    by = base.of_each
    return base.workers, [
        one.of_each / by if by and one.counts and one.of_each else None for one in sizes
    ]

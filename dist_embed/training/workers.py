"""What every worker's steps took, brought together at a log line, and who holds the others up."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch

from dist_embed.observe.phase_names import PHASES, PhaseName, key_of, metric_of
from dist_embed.observe.phases import Spent
from dist_embed.parallel.collectives import gather_texts, stack_over_workers
from dist_embed.parallel.device import peak_memory_bytes
from dist_embed.parallel.group import Group

STRAGGLES = 1.5  # times the median of the workers
STRAGGLING_SECONDS = 60.0
MOST_LISTED = 64  # workers whose phases are in metrics, whose every line has all of them


@dataclass(frozen=True)
class WorkersSpent:
    """Of every worker by rank, since the log line before; see `Spent`.

    Attributes:
        seconds: in steps, which are of one length, of worker 0.
        phases: seconds by name.
        own_seconds: without the waits for others.
        rows_requested: distinct rows, summed over steps.
        memory_bytes: the most it has held, see `peak_memory_bytes`.
    """

    seconds: float
    phases: dict[PhaseName, list[float]]
    own_seconds: list[float]
    rows_requested: list[int]
    memory_bytes: list[int]

    def as_metrics(self) -> dict[str, Any]:
        """For a run's metrics: phases of worker 0, and what tells workers apart."""
        phases = {metric_of(name): _rounded(of) for name, of in self.phases.items()}
        are_few = len(self.own_seconds) <= MOST_LISTED
        return {
            **{name: of[0] for name, of in phases.items()},
            **({f"workers/{name}": of for name, of in phases.items()} if are_few else {}),
            "workers/own_seconds": _rounded(self.own_seconds),
            "workers/rows_requested": self.rows_requested,
            "workers/memory_bytes": self.memory_bytes,
        }

    def as_event(self) -> dict[str, Any]:
        """For whoever watches: a list by rank for each figure."""
        return {
            "phases": {key_of(name): of for name, of in self.phases.items()},
            "own_seconds": self.own_seconds,
            "rows_requested": self.rows_requested,
            "memory_bytes": self.memory_bytes,
        }


def _rounded(seconds: list[float]) -> list[float]:
    return [round(one, 6) for one in seconds]


def spent_by_workers(spent: Spent, group: Group) -> WorkersSpent:
    """Bring together what each has spent: one exchange of a few numbers.

    It is read at once, so a GPU comes to the end of its queue here, once a log line: the lines of a
    step are about that step. Collective.
    """
    numbers = [
        *(spent.phases[name] for name in PHASES),
        spent.own_seconds, spent.rows_requested, peak_memory_bytes(group.device),
    ]  # fmt: skip
    own = torch.tensor(numbers, dtype=torch.float64).to(group.device)
    *phases, own_seconds, rows, memory = stack_over_workers(own, group).T.tolist()
    return WorkersSpent(
        spent.seconds,
        dict(zip(PHASES, phases, strict=True)),
        own_seconds,
        [int(count) for count in rows],
        [int(count) for count in memory],
    )


class Stragglers:
    """Names workers that the others wait for, when that begins and when it ends.

    Steps of all workers take equally long, as they wait for each other in every one: who is slow
    is seen by what a worker needs outside of exchanges. Collective.
    """

    def __init__(self, group: Group) -> None:
        self._hosts = gather_texts(socket.gethostname(), group)
        self._own = [0.0] * group.num_workers
        self._seconds = 0.0
        self._named: list[int] = []

    def lines(self, found: WorkersSpent) -> list[str]:
        """What is to be said after another log line; looked at once a minute of steps is together.

        Not collective.
        """
        self._seconds += found.seconds
        self._own = [sum(pair) for pair in zip(self._own, found.own_seconds, strict=True)]
        if self._seconds < STRAGGLING_SECONDS:
            return []
        # Of two workers the faster one's.
        usual = median_low(self._own)
        slow = [rank for rank, own in enumerate(self._own) if own > STRAGGLES * usual]
        said = [
            f"worker {rank} on {self._hosts[rank]} holds the others up: in {self._seconds:.0f} s "
            f"of steps it was busy for {self._own[rank]:.0f} s, the median worker for {usual:.0f} s"
            for rank in slow
            if rank not in self._named
        ]
        said += [
            f"worker {rank} on {self._hosts[rank]} holds the others up no more"
            for rank in self._named
            if rank not in slow
        ]
        self._own, self._seconds, self._named = [0.0] * len(self._own), 0.0, slow
        return said

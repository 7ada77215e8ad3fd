"""Who holds up the others is named, and nobody else."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.parallel.collectives import (
    start_sum_over_workers,
    sum_numbers_over_workers,
    sum_over_workers,
)
from dist_embed.parallel.group import Group
from dist_embed.parallel.hang import at, hangs_named
from tests.distributed.pool import WorkerPool

SECONDS = 0.6


def _hang(seconds: float) -> None:
    time.sleep(seconds)


def _held_up(group: Group, slow: int, phase: str | None, started: bool) -> list[str]:
    """A step in which worker ``slow`` sleeps, after it has ``started`` an exchange or not."""
    told: list[str] = []
    with hangs_named(group, SECONDS, told.append):
        at("step 7")
        sum_numbers_over_workers([1], group)
        at(phase)
        wait = start_sum_over_workers(torch.ones(1), group) if started else lambda: None
        if group.rank == slow:
            _hang(4 * SECONDS)
        wait()
        sum_over_workers(torch.ones(2), group)
        at(None)
        sum_numbers_over_workers([1], group)
    return told


@pytest.mark.parametrize(
    ("num_workers", "slow", "started"),
    [
        (2, 1, False),
        (2, 0, True),
        *(pytest.param(*case, marks=pytest.mark.heavy)
          for case in [(2, 0, False), (2, 1, True), (3, 1, False), (1, 0, False)]),
    ],
)  # fmt: skip
def test_who_holds_up_the_others_is_named(
    workers: WorkerPool, num_workers: int, slow: int, started: bool
) -> None:
    told = workers.run(num_workers, _held_up, slow, "step 8", started)
    (text,) = (line for lines in told for line in lines)  # one says it for all
    assert text.startswith(f"worker {slow} makes no progress in step 8; it has been here since ")
    assert "_hang(4 * SECONDS)" in text
    assert text.endswith("time.sleep(seconds)")


def test_what_may_take_long_is_no_hang(workers: WorkerPool) -> None:
    assert workers.run(2, _held_up, 1, None, False) == [[], []]


def _slow_but_moving(group: Group) -> list[str]:
    told: list[str] = []
    with hangs_named(group, SECONDS, told.append):
        for step in range(8):
            at(f"step {step}")
            time.sleep(SECONDS / 3)
            sum_numbers_over_workers([1], group)
    return told


def test_who_moves_on_slowly_does_not_hang(workers: WorkerPool) -> None:
    assert workers.run(2, _slow_but_moving) == [[], []]


class Silent:
    """A store whose host stands still."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def clone(self) -> Silent:
        return self

    def set(self, *_: str) -> None:
        self.goes_on.wait(60)
        raise RuntimeError("gone")


@pytest.mark.parametrize(
    ("rank", "phase"), [(1, "step 8"), (3, "step 8"), (2, "step 8"), (1, None)]
)
def test_where_worker_0_does_not_answer_two_of_the_others_say_so(
    monkeypatch: pytest.MonkeyPatch, rank: int, phase: str | None
) -> None:
    """Nobody else can tell it, and the exchange's limit is far."""
    store = Silent()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    exchanges: Any = SimpleNamespace(_get_sequence_number_for_group=lambda: 3)
    group = Group(rank, 4, 1, torch.device("cpu"), exchanges)
    told: list[str] = []
    with hangs_named(group, 0.2, told.append):
        at(phase)
        time.sleep(1.0)
        store.goes_on.set()
    expected = (
        f"worker 0, or its machine, does not answer: worker {rank}, in step 8, has waited 0 s for "
        "its store"
    )
    assert told == ([expected] if rank != 2 and phase else [])

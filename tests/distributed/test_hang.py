"""Who holds up the others is named, and nobody else."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.observe.phases import Phases, phase, waiting
from dist_embed.parallel import hang
from dist_embed.parallel.collectives import (
    start_sum_over_workers,
    sum_numbers_over_workers,
    sum_over_workers,
)
from dist_embed.parallel.errors import Hangs, is_passing
from dist_embed.parallel.group import Group
from dist_embed.parallel.hang import at, failures_told_by, hangs_named
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


def _held_up_in_a_phase(group: Group) -> list[str]:
    told: list[str] = []
    with hangs_named(group, SECONDS, told.append), Phases(group.device).recorded():
        at("step 7")
        with phase("data wait"):
            if group.rank == 1:
                _hang(4 * SECONDS)
        sum_numbers_over_workers([1], group)
        at(None)
        sum_numbers_over_workers([1], group)
    return told


def test_the_phase_of_the_step_is_named(workers: WorkerPool) -> None:
    told = workers.run(2, _held_up_in_a_phase)
    (text,) = (line for lines in told for line in lines)
    assert text.startswith("worker 1 makes no progress in step 7, data wait; it has been here ")


def _alone(group: Group, steps: list[str | None], in_phase: bool) -> tuple[list[Exception], bool]:
    """What a worker told that hangs in the last of these steps, and whether it was ended."""
    told: list[Exception] = []
    ended = threading.Event()
    real: Any = hang.os, hang._tell
    hang.os = SimpleNamespace(_exit=lambda code: ended.set())  # type: ignore[assignment]
    failures_told_by(told.append)
    try:
        with hangs_named(group, 60.0, told.append, limit=SECONDS):  # type: ignore[arg-type]
            for step in steps:
                at(step)
                with Phases(group.device).recorded(), phase("data wait") if in_phase else waiting():
                    pass
            with Phases(group.device).recorded(), phase("data wait") if in_phase else waiting():
                deadline = time.monotonic() + 3 * SECONDS
                while not ended.is_set() and time.monotonic() < deadline:
                    _hang(0.05)
    finally:
        hang.os, hang._tell = real
    return told, ended.is_set()


def test_a_worker_alone_that_hangs_tells_where_and_is_ended(workers: WorkerPool) -> None:
    """By an error that may pass."""
    (((error, *_), ended),) = workers.run(1, _alone, ["step 1", "step 2"], True)
    assert ended
    assert isinstance(error, Hangs)
    assert is_passing(error)
    assert str(error) == "no progress for 1 s (cluster.timeout_seconds) in step 2, data wait"


@pytest.mark.parametrize(
    ("num_workers", "steps", "in_phase"),
    [(1, ["step 1"], True), (1, ["step 1", "step 2"], False), (1, ["step 1", "step 2", None], True),
     (2, ["step 1", "step 2"], True)],
    ids=["the first step", "between phases", "what may take long", "one of several"],
)  # fmt: skip
def test_only_a_worker_alone_in_a_phase_of_a_later_step_is_ended(
    workers: WorkerPool, num_workers: int, steps: list[str | None], in_phase: bool
) -> None:
    assert workers.run(num_workers, _alone, steps, in_phase) == num_workers * [([], False)]


def test_what_is_told_of_a_hang_ends_where_it_was_seen() -> None:
    error = Hangs("no progress")
    error.with_traceback(hang._traceback_of(sys._getframe()))
    first, *_, last = "".join(traceback.format_exception(error)).splitlines()
    assert (first, last) == (
        "Traceback (most recent call last):", "dist_embed.parallel.errors.Hangs: no progress",
    )  # fmt: skip


def test_a_worker_is_given_ten_times_as_long_as_it_ever_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hang, "_steps", 3)
    slow, stuck = hang._Seen(0, "step 3", 9, "output"), hang._Seen(0, "step 4", 9, "output")
    patience = hang._Patience(looks=4)
    assert not any(patience.is_over(slow) for _ in range(3))
    assert [patience.is_over(stuck) for _ in range(21)] == 20 * [False] + [True]


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

"""Whose time is whose where one worker is slower than the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dist_embed.observe.phases import PHASES, Phases, Spent
from dist_embed.parallel.collectives import sum_numbers_over_workers
from dist_embed.parallel.group import Group
from dist_embed.training.workers import WorkersSpent, spent_by_workers
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Sharded, Tiny, random_pairs

STEPS, SLEEP = 2, 0.4


def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
    def late(*args: Any, **more: Any) -> Any:
        time.sleep(SLEEP)
        return function(*args, **more)

    return late


def delay(place: str, sharded: Sharded) -> None:
    """Make this worker slow in one place of every step."""
    if place == "encoder":
        sharded.transformer.encoder[0].forward = delayed(sharded.transformer.encoder[0].forward)  # type: ignore[method-assign]
    elif place == "dense backward":
        sharded.transformer.encoder[0].register_full_backward_pre_hook(delayed(lambda *_: None))
    elif place == "optimizer":
        sharded.optimizer.step = delayed(sharded.optimizer.step)  # type: ignore[method-assign]
    elif place == "ids exchange":
        (module,) = sharded.lookup._modules
        module.input_dist = delayed(module.input_dist)
    elif place == "lookup":
        (module,) = sharded.lookup._modules
        module.compute = delayed(module.compute)  # type: ignore[method-assign]
    else:
        assert place == "output"
        output = sharded.train_step._output
        output.start = delayed(output.start)  # type: ignore[method-assign]


def spent_where_worker_1_is_slow(
    group: Group, tiny: Tiny, place: str
) -> tuple[Spent, WorkersSpent]:
    sharded = Sharded(tiny, group)
    works = [sharded.work(random_pairs(40, seed, 31, 31)) for seed in range(STEPS + 3)]
    for number in (1, 2):  # in the second DDP orders its buckets anew, once
        sharded.train_step.run(number, works[number - 1], works[number])
    if group.rank == 1:
        delay(place, sharded)
    phases = Phases(group.device)
    sum_numbers_over_workers([0], group)
    for number in range(3, STEPS + 3):
        with phases.recorded():
            sharded.train_step.run(number, works[number - 1], works[number])
            sum_numbers_over_workers([0], group)  # as between two steps of a run
    spent = phases.take()
    return spent, spent_by_workers(spent, group)


@pytest.mark.parametrize("num_samples", [0, 9])
@pytest.mark.parametrize(
    "place", ["ids exchange", "lookup", "encoder", "output", "dense backward", "optimizer"]
)
def test_the_others_only_wait_for_a_slow_worker(
    workers: WorkerPool, place: str, num_samples: int
) -> None:
    tiny = Tiny(source_rows=31, num_samples=num_samples)
    (first, of_all), (slow, same) = workers.run(2, spent_where_worker_1_is_slow, tiny, place)
    late = 0.9 * STEPS * SLEEP
    assert slow.phases[place] >= late
    assert slow.own_seconds >= late
    assert first.seconds - first.own_seconds >= late
    for spent in (first, slow):
        assert set(spent.phases) == set(PHASES)
        of_steps = set(PHASES) - {"agreement", "checkpoint stall", "data wait"}
        assert all(spent.phases[name] > 0 for name in of_steps)
        assert sum(spent.phases.values()) <= spent.seconds
        assert spent.rows_requested > 0
    # Every worker knows of all.
    assert of_all.own_seconds == same.own_seconds == [first.own_seconds, slow.own_seconds]
    assert of_all.rows_requested == [first.rows_requested, slow.rows_requested]
    assert of_all.phases[place] == [first.phases[place], slow.phases[place]]
    assert min(of_all.memory_bytes) > 2**20


def rows_of_steps(group: Group, tiny: Tiny) -> tuple[int, int]:
    sharded = Sharded(tiny, group)
    works = [sharded.work(random_pairs(9, seed, 31, 31)) for seed in range(3)]
    wanted = [sharded.train_step.prepare(n, work).wanted for n, work in enumerate(works, 1)]
    phases = Phases(group.device)
    for number in (1, 2):
        with phases.recorded():
            sharded.train_step.run(number, works[number - 1], works[number])
        with torch.no_grad():  # as a validation
            sharded.lookup.lookup({"source": torch.arange(5)})
    of_first_two = [len(rows) for want in wanted[:2] for rows in want.rows.values()]
    return phases.take().rows_requested, sum(of_first_two)


def test_the_rows_of_steps_are_counted_and_those_of_nothing_else(workers: WorkerPool) -> None:
    for counted, wanted in workers.run(2, rows_of_steps, Tiny(source_rows=31)):
        assert counted == wanted > 0

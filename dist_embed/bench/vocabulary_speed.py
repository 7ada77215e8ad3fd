"""Seconds of a training step, of several cases in turns."""

from __future__ import annotations

import gc
import os
import time
from itertools import zip_longest
from statistics import median

import torch

from dist_embed.bench.plain_model import Step
from dist_embed.bench.vocabulary_cases import SAMPLED, Case, batches, build_trainer
from dist_embed.bench.vocabulary_memory import LOG_FOLDER, TIMEOUT_SECONDS, Say
from dist_embed.cluster.local import launch_local
from dist_embed.data.loader import StepBatches
from dist_embed.observe.events import Emit
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import Group, joined_group

WARM_UP_STEPS = 3


def measure_apart(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Say
) -> list[list[float]]:
    """Seconds per step of each case, round by round, in turns.

    Every time in processes of its own, so that cases may be as large as the machine.
    """
    found: list[list[float]] = [[] for _ in cases]
    for number in range(rounds):
        for case, seconds in zip(cases, found, strict=True):
            ((one,),) = _launch([case], range(number, number + 1), steps, num_workers, say)
            seconds.append(one)
    return found


def measure_side_by_side(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Say
) -> list[list[float]]:
    """The same with all cases in the same processes, each round in the other order.

    A round takes seconds, and every case has the same processor, memory and allocator: smaller
    differences can be told than by `measure_apart`. All cases must fit into memory together.
    """
    return _launch(cases, range(rounds), steps, num_workers, say)


def _launch(
    cases: list[Case], rounds: range, steps: int, num_workers: int, say: Say
) -> list[list[float]]:
    """`_measure` on workers of this machine."""
    found: list[list[float]] = launch_local(
        _measure, (cases, rounds, steps), num_workers=num_workers,
        on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER),
    )  # fmt: skip
    return found


def _measure(cases: list[Case], rounds: range, steps: int, emit: Emit) -> list[list[float]]:
    """By case the median of ``steps`` steps' seconds of each round. Collective."""
    torch.set_num_threads(1)
    if any(case.kind == SAMPLED for case in cases):
        keep_freed_memory()  # as every run's workers do
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group("cpu", TIMEOUT_SECONDS) as group:
        sides = [(case, build_trainer(case, group)) for case in cases]
        for case, trainer in sides:
            _timed(trainer.step, 0, batches(case, group, WARM_UP_STEPS), group)
        found: list[list[float]] = [[] for _ in cases]
        for number in rounds:
            turns = list(zip(sides, found, strict=True))
            for (case, trainer), seconds in turns if number % 2 == 0 else turns[::-1]:
                before = WARM_UP_STEPS + number * steps
                work = batches(case, group, steps, before)
                seconds.append(median(_timed(trainer.step, before, work, group)))
                if group.is_first:
                    emit({"kind": "line", "text": _told(number, case, seconds[-1])})
        return found


def _told(number: int, case: Case, seconds: float) -> str:
    return (
        f"round {number + 1}: {case.kind}, {case.num_words:,} words, width {case.width}, "
        f"{case.tokens} tokens: {seconds * 1e3:.1f} ms"
    )


def _timed(step: Step, before: int, work: list[StepBatches], group: Group) -> list[float]:
    """Seconds of each step, until the slowest worker is done; ``before`` steps have been made."""
    gc.collect()
    barrier = torch.zeros(1)
    taken = []
    for number, (some, following) in enumerate(zip_longest(work, work[1:]), start=1):
        sum_over_workers(barrier, group)
        started = time.perf_counter()
        step(before + number, some, following)
        sum_over_workers(barrier, group)
        taken.append(time.perf_counter() - started)
    return taken

"""Seconds of a training step, of several cases in turns; on GPUs with their memory."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median
from typing import Literal

import torch

from dist_embed.bench.plain_model import Step
from dist_embed.bench.vocabulary_cases import SAMPLED, Case, Trainer, build_trainer, prepared
from dist_embed.bench.vocabulary_memory import Peaks
from dist_embed.bench.workers import LOG_FOLDER, TIMEOUT_SECONDS, Say, meet
from dist_embed.cluster.local import launch_local
from dist_embed.data.loader import StepBatches
from dist_embed.embedding.memory import GIB
from dist_embed.embedding.tiers import free_bytes
from dist_embed.errors import UserError
from dist_embed.observe.events import Emit
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.collectives import least_over_workers
from dist_embed.parallel.group import Group, joined_group

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Measured:
    """What was found of one case.

    Attributes:
        seconds: per step, by round.
        peaks: on GPUs the bytes that PyTorch has allocated of the fullest for this case, while it
            was built and in the warm-up steps. On the CPU there are none: memory of a process is
            told case by case by `vocabulary_memory` alone.
    """

    seconds: list[float]
    peaks: Peaks


def measure_apart(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Say
) -> list[list[float]]:
    """Seconds per step of each case, round by round, in turns.

    Every time in processes of its own, so that cases may be as large as the machine.
    """
    found: list[list[float]] = [[] for _ in cases]
    for number in range(rounds):
        for case, seconds in zip(cases, found, strict=True):
            (one,) = _launch([case], range(number, number + 1), steps, num_workers, say)
            seconds += one.seconds
    return found


def measure_side_by_side(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Say
) -> list[list[float]]:
    """The same with all cases in the same processes, each round in the other order.

    A round takes seconds, and every case has the same processor, memory and allocator: smaller
    differences can be told than by `measure_apart`. All cases must fit into memory together.
    """
    return [one.seconds for one in _launch(cases, range(rounds), steps, num_workers, say)]


def measure_on_gpus(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Say
) -> list[Measured]:
    """Like `measure_side_by_side`, on as many GPUs as workers, and with their memory.

    Raises:
        UserError: the cases do not fit into the memory of a GPU together.
    """
    return _launch(cases, range(rounds), steps, num_workers, say, "cuda")


def _launch(
    cases: list[Case], rounds: range, steps: int, num_workers: int, say: Say,
    device: Literal["cpu", "cuda"] = "cpu",
) -> list[Measured]:  # fmt: skip
    """`_measure` on workers of this machine."""
    found: list[Measured] = launch_local(
        _measure, (cases, rounds, steps, device), num_workers=num_workers,
        on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER), device=device,
    )  # fmt: skip
    return found


def _measure(
    cases: list[Case], rounds: range, steps: int, device: Literal["cpu", "cuda"], emit: Emit
) -> list[Measured]:
    """By case the seconds of a step in each round, and on GPUs its memory. Collective."""
    torch.set_num_threads(1)
    if any(case.kind == SAMPLED for case in cases):
        keep_freed_memory()  # as every run's workers do
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group(device, TIMEOUT_SECONDS) as group:
        _check_room(cases, group)
        sides = [(case, *_warmed_up(case, group)) for case in cases]
        found = [Measured([], peaks) for _, _, peaks in sides]
        for number in rounds:
            turns = list(zip(sides, found, strict=True))
            for (case, trainer, _), one in turns if number % 2 == 0 else turns[::-1]:
                before = WARM_UP_STEPS + number * steps
                work = prepared(trainer, case, group, steps, before)
                one.seconds.append(_seconds_of_a_step(trainer.step, before, work, group))
                if group.is_first:
                    emit({"kind": "line", "text": _told(number, case, one.seconds[-1])})
        return found


def _check_room(cases: list[Case], group: Group) -> None:
    """Raise UserError where a GPU cannot hold what of the cases can be foretold."""
    if group.device.type == "cpu":
        return
    needed = sum(case.least_bytes(group.num_workers) for case in cases)
    free = free_bytes(group.device)
    if needed > free:
        sizes = ", ".join(f"{case.kind}: {case.num_words:,}" for case in cases)
        raise UserError(
            f"--words, --widths, --against: {sizes} words of width {cases[0].width} need "
            f"{needed / GIB:.1f} GiB of a GPU together, and {free / GIB:.1f} GiB are free; "
            "take less, or more workers"
        )


def _warmed_up(case: Case, group: Group) -> tuple[Trainer, Peaks]:
    """A case with its first steps made, and its `Measured.peaks`. Collective."""
    memory = _GpuMemory(group) if group.device.type != "cpu" else None
    peaks: Peaks = {}
    trainer = build_trainer(case, group)
    if memory:
        peaks["built"] = memory.peak()
    work = prepared(trainer, case, group, WARM_UP_STEPS)
    _seconds_of_a_step(trainer.step, 0, work, group)
    if memory:
        peaks["trained"] = memory.peak()
    return trainer, peaks


class _GpuMemory:
    """What PyTorch allocates of this worker's GPU from now on."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._before = torch.cuda.memory_allocated(group.device)
        torch.cuda.reset_peak_memory_stats(group.device)

    def peak(self) -> int:
        """The most bytes on any worker since the last call. Collective."""
        peak = torch.cuda.max_memory_allocated(self._group.device) - self._before
        torch.cuda.reset_peak_memory_stats(self._group.device)
        return -least_over_workers(-peak, self._group)


def _told(number: int, case: Case, seconds: float) -> str:
    return (
        f"round {number + 1}: {case.kind}, {case.num_words:,} words, width {case.width}, "
        f"{case.tokens} tokens: {seconds * 1e3:.1f} ms"
    )


def _seconds_of_a_step(step: Step, before: int, work: list[StepBatches], group: Group) -> float:
    """Until the slowest worker is done; ``before`` steps have been made.

    On the CPU the median of single steps. On a GPU all of them ÷ their number: there the host goes
    ahead of the device, from one step into the next.
    """
    gc.collect()
    on_gpu = group.device.type != "cpu"
    taken = []
    started = meet(group)
    for number, (some, following) in enumerate(zip_longest(work, work[1:]), start=1):
        step(before + number, some, following)
        if not on_gpu:
            ended = meet(group)
            taken.append(ended - started)
            started = ended
    return (meet(group) - started) / len(work) if on_gpu else median(taken)

"""A whole training step by the size of the vocabulary, and beside plain PyTorch."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from dist_embed.bench.vocabulary_cases import (
    FULL,
    KINDS,
    SAMPLED,
    SPARSE,
    Case,
    Kind,
    Step,
    batches,
    build_trainer,
)
from dist_embed.bench.vocabulary_memory import (
    LOG_FOLDER,
    PHASES,
    TIMEOUT_SECONDS,
    Peaks,
    largest,
    measure_memory,
)
from dist_embed.cluster.local import launch_local
from dist_embed.config.errors import UserError
from dist_embed.data.loader import StepBatches
from dist_embed.embedding.memory import GIB
from dist_embed.observe.events import Event
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import Group, joined_group

WARM_UP_STEPS = 3
Emit = Callable[[Event], None]
Say = Callable[[str], None]
Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


@dataclass
class Report:
    """What was found, and how it is shown.

    Attributes:
        num_workers: W.
        speeds: groups of cases that were timed in turns, each with its seconds per step by round.
        memory: each case with its peaks in bytes, or None where it failed.
        largest: by kind the most words that train here, and the fewest that do not.
    """

    num_workers: int
    speeds: list[list[tuple[Case, list[float]]]]
    memory: list[tuple[Case, Peaks | None]]
    largest: dict[str, tuple[int, int]]

    def tables(self) -> Iterator[Table]:
        """What to print."""
        for group in self.speeds:
            yield self._speed_table(group)
        if self.memory:
            yield self._memory_table()
        if self.largest:
            rows = [
                [kind, f"{held:,}", f"{failed:,}"] for kind, (held, failed) in self.largest.items()
            ]
            yield "Largest vocabulary of this machine:", ["", "trains", "does not"], rows

    def _speed_table(self, group: list[tuple[Case, list[float]]]) -> Table:
        first = group[0][1]
        rows = [
            [case.kind, f"{case.num_words:,}", str(case.width), str(case.tokens),
             f"{median(seconds) * 1e3:.1f}",
             f"{min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}", *_compared(seconds, first)]
            for case, seconds in group
        ]  # fmt: skip
        return (
            "Time of a whole training step, in turns, each time in processes of its own:",
            ["", "words", "width", "tokens per worker", "ms per step", "range", "ratio", "range"],
            rows,
        )

    def _memory_table(self) -> Table:
        rows = []
        for case, found in self.memory:
            share = case.table_bytes / self.num_workers
            peaks = dict.fromkeys(PHASES, "failed") if found is None else {
                phase: f"{found[phase] / GIB:.2f}" if phase in found else "" for phase in PHASES
            }  # fmt: skip
            rows.append([
                case.kind, f"{case.num_words:,}", str(case.width), str(case.tokens),
                f"{share / GIB:.2f}", *peaks.values(), f"{(1.1 * share) / GIB + 1:.2f}",
            ])  # fmt: skip
        return (
            "Peak resident memory of the fullest worker, GiB:",
            ["", "words", "width", "tokens per worker", "tables / W", *PHASES,
             "1.1 × tables / W + 1"],
            rows,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "workers": self.num_workers,
            "speeds": [
                [{"case": asdict(case), "seconds_per_step": found} for case, found in group]
                for group in self.speeds
            ],
            "memory": [{"case": asdict(case), "peaks": found} for case, found in self.memory],
            "largest": self.largest,
        }


def vocabulary_report(
    words: list[int], widths: list[int], *, against: int, tokens: int, full_tokens: int,
    num_samples: int, num_workers: int, rounds: int, steps: int, find_largest: bool, say: Say,
) -> Report:  # fmt: skip
    """Time ``words`` at each of ``widths``, and at ``against`` words plain PyTorch beside us.

    Raises:
        UserError: fewer words than samples, or nothing to do.
    """
    if not words and not against and not find_largest:
        raise UserError("--words: no size is given, and --against 0 leaves nothing to measure")
    for num_words in (*words, *([against] if against else [])):
        if num_words <= num_samples:
            raise UserError(f"--samples: {num_samples} is not allowed with {num_words} words")

    def case(kind: Kind, num_words: int, width: int, of_tokens: int) -> Case:
        return Case(kind, num_words, width, of_tokens, num_samples)

    groups = [[case(SAMPLED, n, width, tokens) for n in words] for width in widths]
    if against:
        groups.append([case(k, against, widths[0], tokens) for k in (SAMPLED, SPARSE)])
    if against and full_tokens:
        groups.append([case(k, against, widths[0], full_tokens) for k in (SAMPLED, FULL)])
    memory: list[tuple[Case, Peaks | None]] = []
    for one in dict.fromkeys(one for group in groups for one in group):
        with tempfile.TemporaryDirectory(prefix="dist_embed-bench-") as folder:
            found = measure_memory(one, num_workers=num_workers, folder=folder, say=say)
        memory.append((one, found))
    failed = {one for one, found in memory if found is None}
    speeds = []
    for group in groups:
        alive = [one for one in group if one not in failed]
        seconds = measure_in_turns(
            alive, num_workers=num_workers, rounds=rounds, steps=steps, say=say
        )
        speeds.append(list(zip(alive, seconds, strict=True)))
    found_largest: dict[str, tuple[int, int]] = {}
    if find_largest:
        for kind in KINDS if full_tokens else (SAMPLED, SPARSE):
            of_tokens = full_tokens if kind == FULL else tokens
            found_largest[kind] = largest(
                partial(_sized, case(kind, 0, widths[0], of_tokens)), num_workers=num_workers,
                say=say,
            )  # fmt: skip
    return Report(num_workers, [group for group in speeds if group], memory, found_largest)


def _compared(seconds: list[float], first: list[float]) -> list[str]:
    """The median over rounds of the ratio to the first case of the same round, and its range.

    The machine's speed may change between rounds; within one it hardly has the time to.
    """
    ratios = [one / other for one, other in zip(seconds, first, strict=True)]
    return [f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


def _sized(case: Case, num_words: int) -> Case:
    return replace(case, num_words=num_words)


def measure_in_turns(
    cases: list[Case], *, num_workers: int, rounds: int, steps: int, say: Say
) -> list[list[float]]:
    """Seconds per step of each case, round by round, in turns.

    Every time in processes of its own: what one case leaves in the allocator changes how fast the
    next one is.
    """
    found: list[list[float]] = [[] for _ in cases]
    for number in range(rounds):
        for case, seconds in zip(cases, found, strict=True):
            seconds.append(
                launch_local(
                    _measure, (case, steps), num_workers=num_workers,
                    on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER),
                )
            )  # fmt: skip
            say(
                f"round {number + 1}: {case.kind}, {case.num_words:,} words, width {case.width}, "
                f"{case.tokens} tokens: {seconds[-1] * 1e3:.1f} ms"
            )
    return found


def _measure(case: Case, steps: int, emit: Emit) -> float:
    """The median of ``steps`` steps' seconds."""
    torch.set_num_threads(1)
    if case.kind == SAMPLED:
        keep_freed_memory()  # as every run's workers do
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group("cpu", TIMEOUT_SECONDS) as group:
        trainer = build_trainer(case, group)
        work = batches(case, group, WARM_UP_STEPS + steps)
        _timed(trainer.step, work[:WARM_UP_STEPS], group)
        return median(_timed(trainer.step, work[WARM_UP_STEPS:], group))


def _timed(step: Step, work: list[StepBatches], group: Group) -> list[float]:
    """Seconds of each step, until the slowest worker is done."""
    gc.collect()
    barrier = torch.zeros(1)
    taken = []
    for number, some in enumerate(work, start=1):
        sum_over_workers(barrier, group)
        started = time.perf_counter()
        step(number, some)
        sum_over_workers(barrier, group)
        taken.append(time.perf_counter() - started)
    return taken

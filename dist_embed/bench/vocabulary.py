"""A whole training step by the size of the vocabulary, and beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Literal

from dist_embed.bench.vocabulary_cases import (
    FULL,
    KINDS,
    SAMPLED,
    SPARSE,
    Case,
    Kind,
)
from dist_embed.bench.vocabulary_memory import PHASES, Peaks, largest, measure_memory
from dist_embed.bench.vocabulary_speed import (
    measure_apart,
    measure_on_gpus,
    measure_side_by_side,
)
from dist_embed.bench.workers import Say
from dist_embed.embedding.memory import GIB
from dist_embed.errors import UserError
from dist_embed.parallel.machine import available_bytes
from dist_embed.storage.temporary import temporary_folder

Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


@dataclass
class Report:
    """What was found, and how it is shown.

    Attributes:
        num_workers: W.
        speeds: groups of cases that were timed in turns, each with its seconds per step by round.
        memory: each case with its peaks in bytes, or None where it failed.
        largest: by kind the most words that train here, and the fewest that do not.
        device: where.
    """

    num_workers: int
    speeds: list[list[tuple[Case, list[float]]]]
    memory: list[tuple[Case, Peaks | None]]
    largest: dict[str, tuple[int, int]]
    device: Literal["cpu", "cuda"] = "cpu"

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
            "Time of a whole training step, in turns; ratio to the first line, round by round:",
            ["", "words", "width", "tokens per worker", "ms per step", "range", "ratio", "range"],
            rows,
        )

    def _memory_table(self) -> Table:
        on_gpu = self.device == "cuda"
        phases = PHASES[:2] if on_gpu else PHASES  # on a GPU nothing is saved
        rows = []
        for case, found in self.memory:
            share = case.table_bytes / self.num_workers
            peaks = dict.fromkeys(phases, "failed") if found is None else {
                phase: f"{found[phase] / GIB:.2f}" if phase in found else "" for phase in phases
            }  # fmt: skip
            aim = [] if on_gpu else [f"{(1.1 * share) / GIB + 1:.2f}"]  # of a whole process
            rows.append([
                case.kind, f"{case.num_words:,}", str(case.width), str(case.tokens),
                f"{share / GIB:.2f}", *peaks.values(), *aim,
            ])  # fmt: skip
        return (
            "Peak memory that PyTorch has allocated of the fullest GPU for a case, GiB:"
            if on_gpu
            else "Peak resident memory of the fullest worker, GiB:",
            ["", "words", "width", "tokens per worker", "tables / W", *phases,
             *([] if on_gpu else ["1.1 × tables / W + 1"])],
            rows,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "workers": self.num_workers,
            "device": self.device,
            "speeds": [
                [
                    {
                        "case": asdict(case),
                        "seconds_per_step": found,
                        "ratio_to_first": median(_ratios(found, group[0][1])),
                    }
                    for case, found in group
                ]
                for group in self.speeds
            ],
            "memory": [{"case": asdict(case), "peaks": found} for case, found in self.memory],
            "largest": self.largest,
        }


def vocabulary_report(
    words: list[int], widths: list[int], *, against: int, tokens: int, full_tokens: int,
    num_samples: int, num_workers: int, rounds: int, steps: int, find_largest: bool,
    device: Literal["cpu", "cuda"] = "cpu", say: Say,
) -> Report:  # fmt: skip
    """Time ``words`` at each of ``widths``, and at ``against`` words plain PyTorch beside us.

    Raises:
        UserError: fewer words than samples, nothing to do, or what is not possible on a GPU.
    """
    if find_largest and device == "cuda":
        raise UserError(
            "--largest: is not possible on a GPU: it fills the machine's memory, process by "
            "process; use --device cpu, or name sizes with --words"
        )
    if not words and not against and not find_largest:
        raise UserError("--words: no size is given, and --against 0 leaves nothing to measure")
    for num_words in (*words, *([against] if against else [])):
        if num_words <= num_samples:
            raise UserError(f"--samples: {num_samples} is not allowed with {num_words} words")

    def case(kind: Kind, num_words: int, width: int, of_tokens: int) -> Case:
        return Case(kind, num_words, width, of_tokens, num_samples)

    groups = [[case(SAMPLED, n, width, tokens) for n in sorted(words)] for width in widths]
    if against:
        groups.append([case(k, against, widths[0], tokens) for k in (SAMPLED, SPARSE)])
    if against and full_tokens:
        groups.append([case(k, against, widths[0], full_tokens) for k in (SAMPLED, FULL)])
    if device == "cuda":
        return _report_on_gpus(groups, num_workers=num_workers, rounds=rounds, steps=steps, say=say)
    memory: list[tuple[Case, Peaks | None]] = []
    for one in dict.fromkeys(one for group in groups for one in group):
        with temporary_folder("dist_embed-bench-") as folder:
            found = measure_memory(one, num_workers=num_workers, folder=folder, say=say)
        memory.append((one, found))
    failed = {one for one, found in memory if found is None}
    speeds = []
    for group in groups:
        alive = [one for one in group if one not in failed]
        beside = {one.kind for one in alive} == {SAMPLED, SPARSE}
        peaks = [max(found.values()) for one, found in memory if found and one in alive]
        fits = num_workers * sum(peaks) <= available_bytes()
        measure = measure_side_by_side if beside and fits else measure_apart
        seconds = measure(alive, num_workers=num_workers, rounds=rounds, steps=steps, say=say)
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


def _report_on_gpus(
    groups: list[list[Case]], *, num_workers: int, rounds: int, steps: int, say: Say
) -> Report:
    """Time and memory from the same processes, in which each group's cases stand side by side."""
    speeds: list[list[tuple[Case, list[float]]]] = []
    memory: dict[Case, Peaks | None] = {}
    for group in filter(None, groups):
        found = measure_on_gpus(group, num_workers=num_workers, rounds=rounds, steps=steps, say=say)
        speeds.append([(case, one.seconds) for case, one in zip(group, found, strict=True)])
        memory |= {case: one.peaks for case, one in zip(group, found, strict=True)}
    return Report(num_workers, speeds, list(memory.items()), {}, "cuda")


def _ratios(seconds: list[float], first: list[float]) -> list[float]:
    """Round by round: the machine's speed may change between rounds; within one it hardly has the
    time to.
    """
    return [one / other for one, other in zip(seconds, first, strict=True)]


def _compared(seconds: list[float], first: list[float]) -> list[str]:
    """The median over rounds of the ratio to the first case of the same round, and its range."""
    ratios = _ratios(seconds, first)
    return [f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


def _sized(case: Case, num_words: int) -> Case:
    return replace(case, num_words=num_words)

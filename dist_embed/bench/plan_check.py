"""Plans beside what runs took, on the machine file of the same call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from dist_embed.bench.planned_runs import Case, Measured, Runs
from dist_embed.bench.workers import Say
from dist_embed.planning import Machine, Plan, plan

# Aims: memory within a tenth or so many bytes, whichever is more; the median error of step time.
MEMORY_SHARE, MEMORY_BYTES, MEDIAN_ERROR = 0.1, 64 * 2**20, 0.25
CASES = (
    Case("exact", 10_000, 64, 1, 4096),
    Case("exact", 10_000, 128, 2, 4096),
    Case("exact", 100_000, 64, 2, 2048, steps=12),
    Case("exact", 100_000, 128, 4, 2048, steps=12),
    Case("exact", 1_000_000, 64, 2, 512, steps=12),
    Case("sampled", 10_000, 128, 1, 4096),
    Case("sampled", 100_000, 64, 2, 4096),
    Case("sampled", 1_000_000, 128, 4, 4096),
    Case("sampled", 1_000_000, 128, 1, 2048),
    Case("sampled", 10_000_000, 64, 2, 4096),
    # Of other kinds than most runs.
    Case("exact", 30_000, 64, 2, 2048, steps=12, share="none", clip_norm=1.0),
    Case("sampled", 100_000, 64, 2, 4096, layers=4, accumulate=2),
)


@dataclass(frozen=True)
class Compared:
    """A case as it was planned and as it was.

    Attributes:
        case: which.
        plan: what was expected.
        measured: of each round.
    """

    case: Case
    plan: Plan
    measured: list[Measured]

    @property
    def step_seconds(self) -> float:
        """Median of the rounds."""
        return median(one.step_seconds for one in self.measured)

    @property
    def time_error(self) -> float:
        """Planned by measured, less 1."""
        return self.plan.step_seconds / self.step_seconds - 1

    @property
    def spread(self) -> float:
        """The slowest round by the fastest, less 1."""
        taken = [one.step_seconds for one in self.measured]
        return max(taken) / min(taken) - 1

    @property
    def memory_bytes(self) -> int:
        """The most of any round."""
        return max(one.memory_bytes for one in self.measured)

    @property
    def memory_error(self) -> float:
        """Planned by measured, less 1."""
        return self.plan.memory_bytes / self.memory_bytes - 1

    @property
    def memory_is_right(self) -> bool:
        """Within the aim."""
        allowed = max(MEMORY_SHARE * self.memory_bytes, MEMORY_BYTES)
        return abs(self.plan.memory_bytes - self.memory_bytes) <= allowed


def compare(
    machine: Machine, folder: str, rounds: int, workers: list[int], say: Say
) -> list[Compared]:
    """Each of `CASES` with at most as many workers as the most of ``workers``, in rounds."""
    runs = Runs(folder, say)
    cases = [case for case in CASES if case.workers in (1, *workers)]
    measured: dict[Case, list[Measured]] = {case: [] for case in cases}
    for number in range(rounds):
        say(f"round {number + 1}")
        for case in cases:
            measured[case].append(runs.measured(case))
    return [
        Compared(case, plan(runs.config(case), case.workers, machine), rounds_of)
        for case, rounds_of in measured.items()
    ]


def comparison_table(compared: list[Compared]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = [
        "run", "ms a step: planned", "measured",
        "error", "spread", "MiB a worker: planned", "measured", "error",
    ]  # fmt: skip
    return header, [
        [
            str(one.case),
            f"{1000 * one.plan.step_seconds:,.1f}",
            f"{1000 * one.step_seconds:,.1f}",
            f"{one.time_error:+.0%}",
            f"{one.spread:.0%}",
            f"{one.plan.memory_bytes / 2**20:,.0f}",
            f"{one.memory_bytes / 2**20:,.0f}",
            f"{one.memory_error:+.0%}{'' if one.memory_is_right else ' !'}",
        ]
        for one in compared
    ]


def verdict(compared: list[Compared]) -> list[str]:
    """What was aimed at, and the worst ones."""
    errors = [abs(one.time_error) for one in compared]
    worst = max(compared, key=lambda one: abs(one.time_error))
    heaviest = max(compared, key=lambda one: abs(one.memory_error))
    wrong = [one for one in compared if not one.memory_is_right]
    return [
        f"step time: median error {median(errors):.0%} (aim: {MEDIAN_ERROR:.0%}); worst: "
        f"{worst.case}, {worst.time_error:+.0%}, whose rounds differ by {worst.spread:.0%}",
        f"memory: {len(wrong)} of {len(compared)} beyond a tenth and 64 MiB (aim: 0); worst: "
        f"{heaviest.case}, {heaviest.memory_error:+.0%}",
    ]


def figures(machine: Machine, compared: list[Compared]) -> dict[str, Any]:
    """For a JSON file."""
    return {
        "machine": machine.model_dump(),
        "compared": [
            {
                "case": asdict(one.case),
                "plan": one.plan.as_dict(),
                "measured": [asdict(measured) for measured in one.measured],
            }
            for one in compared
        ],
    }

"""What one run of a study came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One run of a study.

    Attributes:
        levels: factor to level.
        seed: of the run.
        measures: see `dist_embed.study.schema.MEASURES`; without ``steps_to_reference``. None of a
            run that was not made, and in a study of scaling.
        validations: steps and validation losses.
        machine: where it ran, see `dist_embed.bench.report.machine`; empty: it was not made.
        row: its columns in the file of results, see `dist_embed.study.results`.
    """

    levels: dict[str, str]
    seed: int
    measures: dict[str, float]
    validations: list[tuple[int, float]]
    machine: dict[str, Any]
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def lacks(self) -> str | None:
        """Why there are no figures of it, in a line; None where there are."""
        if self.row.get("state") not in ("failed", "skipped"):
            return None
        # A failure of a worker ends with its error, behind a traceback.
        reason = [line for line in self.row["reason"].splitlines() if line.strip()] or ["no reason"]
        told = reason[-1] if self.row["state"] == "failed" else reason[0]
        named = ", ".join([*self.levels.values(), f"seed {self.seed}"])
        return f"{named}: {self.row['state']}: {told.strip()}"

"""What a report shows of a study: the rows of its results, as far as they are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.parquet import ParquetError
from dist_embed.study.plan import load_study
from dist_embed.study.results import NO_TEXT, RESULTS_NAME, have_no_text, read_results

Row = dict[str, Any]


@dataclass(frozen=True)
class StudyFigures:
    """A study's results.

    Attributes:
        name: of the study, for the page.
        folder: where they lie.
        done: rows of runs that were measured.
        simulated: rows of sizes that no run was made of.
        missing: runs that are not measured, and figures that none has, and why, a line each.
    """

    name: str
    folder: str
    done: list[Row]
    simulated: list[Row]
    missing: list[str]


def folder_of_study(source: str) -> str | None:
    """The folder of the study that is meant, by its file or its folder; None: it is none."""
    if source.endswith((".yaml", ".yml")):
        return load_study(source).folder
    return source if storage.exists(storage.join(source, RESULTS_NAME)) else None


def read_study(folder: str, name: str) -> StudyFigures:
    """Raises UserError where no run of it has ended yet, or its file is none of a study."""
    try:
        rows = read_results(folder)
    except FileNotFoundError:
        raise UserError(
            f"no results in {folder!r}: {RESULTS_NAME} does not exist; dist-embed study writes it"
        ) from None
    except ParquetError as exc:
        raise UserError(
            f"{RESULTS_NAME} of {folder!r} cannot be read: {exc}; dist-embed study writes it anew"
        ) from None
    rows = [_without_odd_figures(row) for row in rows]
    _without_what_is_alike(rows)
    by_state: dict[str, list[Row]] = {}
    for row in rows:
        by_state.setdefault(row["state"], []).append(row)
    missing = [
        f"{label_of(row)}: {state}" + (f": {row['reason']}" if row["reason"] else "")
        for state in ("failed", "skipped", "waiting")
        for row in by_state.get(state, [])
    ]
    done = by_state.get("done", [])
    simulated = by_state.get("simulated", [])
    missing += [NO_TEXT] if have_no_text(done) else []
    if simulated and all(row["planned_fits"] is False for row in simulated):
        missing.append("no simulated size fits: those are on the page that the study writes")
    return StudyFigures(name, folder, done, simulated, missing)


def _without_odd_figures(row: Row) -> Row:
    """What is not finite, or below 0, counts as not known: only measures, and seeds, may be so."""

    def sound(value: Any) -> bool:
        return type(value) not in (int, float) or 0 <= value < math.inf

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: one for key, one in value.items() if one is not None and sound(one)}
        if isinstance(value, list):
            # By worker: without one, those behind it would be other workers'.
            return value if all(one is not None and sound(one) for one in value) else None
        return value if sound(value) else None

    return {
        name: value if name in ("seed", "measures") else known(value) for name, value in row.items()
    }


def _without_what_is_alike(rows: Sequence[Row]) -> None:
    """Leave levels and seeds that no two rows differ in out of what rows are called by."""
    ran = [row for row in rows if row["state"] != "simulated"]
    if len({row["seed"] for row in ran}) == 1:
        for row in ran:
            row["seed"] = None
    for factor in {factor for row in rows for factor in row["levels"]}:
        if len(rows) > 1 and len({row["levels"].get(factor) for row in rows}) == 1:
            for row in rows:
                del row["levels"][factor]


def label_of(row: Row, but: Sequence[str] = ()) -> str:
    """What tells a row from others: its levels, but for some factors, and its seed."""
    parts = [
        level if factor in ("scaling", "output") else f"{factor} {level}"
        for factor, level in row["levels"].items()
        if factor not in but
    ]
    return ", ".join(parts + ([f"seed {row['seed']}"] if row["seed"] is not None else []))

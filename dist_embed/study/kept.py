"""What a study keeps in JSON beside its runs: read as what anybody may have damaged, or written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dist_embed.data.inputs import InputFile, Inputs
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import Count, as_kind, from_json
from dist_embed.study.results import SCHEMA

_SCORED_AGAIN = "the run is scored again, by its checkpoints where they are there"


@dataclass(frozen=True)
class _Machine:
    """See `dist_embed.bench.report.machine`."""

    device: str
    cores: Count
    memory_gib: float
    versions: dict[str, str]
    platform: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class _Result:
    """What a run came to; ``planned`` and ``figures`` are columns of the file of results."""

    scoring: int
    measures: dict[str, float]
    validations: list[tuple[Count, float]]
    machine: _Machine
    planned: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


def read_kept(uri: str, without: str) -> dict[str, Any] | None:
    """A mapping; None where there is no such file, or an empty one, as earlier versions left
    beside vectors that were not trained to the end.

    Raises UserError: it is damaged, and what happens ``without`` it.
    """
    try:
        content = storage.read_bytes(uri)
        if not content:
            return None
        values = from_json(content)
        if not isinstance(values, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise _damaged(uri, exc, without) from exc
    return values


def read_result(uri: str, scoring: int) -> dict[str, Any] | None:
    """The result of a run, as values; None where there is none that was scored like this. What a
    later version says besides is passed over: the figures are what ``scoring`` makes them.

    Raises UserError: it is damaged.
    """
    values = read_kept(uri, _SCORED_AGAIN)
    if values is None or values.get("scoring") != scoring:
        return None
    try:
        found = as_kind(_Result, values, exact=False)
        pa.Table.from_pylist([found.planned | found.figures], schema=SCHEMA)
    except (ValueError, TypeError, OverflowError) as exc:
        raise _damaged(uri, exc, _SCORED_AGAIN) from exc
    return values


def read_files(uri: str, values: Any, without: str) -> Inputs:
    """The record of files that ``values`` of a file are. Raises UserError as `read_kept` does."""
    try:
        if not isinstance(values, dict):
            raise ValueError("no mapping")
        return {
            part: [as_kind(InputFile, file) for file in files] for part, files in values.items()
        }
    except (ValueError, TypeError) as exc:
        raise _damaged(uri, exc, without) from exc


def _damaged(uri: str, why: Exception, without: str) -> UserError:
    return UserError(f"{uri} is damaged ({why}): remove it, and {without}")

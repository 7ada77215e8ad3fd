"""JSON lines: an object a line, of which two strings are a pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO

from dist_embed.data.text.lines import lines_of
from dist_embed.data.text.rows import Column, Pair, WrongRow, cell, names_alone, nested


def json_pairs(
    file: IO[bytes], name: str, columns: tuple[Column, Column], limit: int
) -> Iterator[Pair | WrongRow]:
    """Pairs of an open file that messages call ``name``; blank lines are none.

    ``columns`` are keys, in objects within others ``translation.en``. Raises CorpusError.
    """
    source, target = names_alone(name, columns)
    for number, line in enumerate(lines_of(file, name, limit), start=1):
        if isinstance(line, WrongRow):
            yield line
        elif line and not line.isspace():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object; one a line is expected")
                yield cell(nested(row, source), limit), cell(nested(row, target), limit)
            except json.JSONDecodeError as exc:  # which knows of one line alone
                yield WrongRow(
                    f"{name}, line {number}: {exc.msg}, column {exc.colno}; an object a line is "
                    "expected"
                )
            except (ValueError, RecursionError) as exc:
                yield WrongRow(f"{name}, line {number}: {exc}")

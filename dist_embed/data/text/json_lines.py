"""JSON lines: an object a line, of which two strings are a pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import IO

from dist_embed.data.text.lines import lines_of
from dist_embed.data.text.rows import Column, Pair, WrongRow, cell, names_alone, nested, too_long

_EXPECTED = "an object a line is expected"
_OF_A_LIST = ", as jq -c '.[]' makes of a list"


def json_pairs(
    file: IO[bytes], name: str, columns: tuple[Column, Column], limit: int
) -> Iterator[Pair | WrongRow]:
    """Pairs of an open file that messages call ``name``; blank lines are none.

    ``columns`` are keys, in objects within others ``translation.en``. Raises CorpusError.
    """
    source, target = names_alone(name, columns)
    # Not as int, which Python makes of 4,300 digits at most.
    decode = json.JSONDecoder(parse_int=Decimal).decode

    def beyond(line: bytes) -> str:
        is_list = line.lstrip(b"\xef\xbb\xbf \t").startswith(b"[")
        return too_long(limit) + f"; {_EXPECTED}{_OF_A_LIST}" * is_list

    for number, line in enumerate(lines_of(file, name, limit, beyond), start=1):
        if isinstance(line, WrongRow):
            yield line
        elif line and not line.isspace():
            expected = _EXPECTED + _OF_A_LIST * line.lstrip().startswith("[")
            try:
                row = decode(line)
                if not isinstance(row, dict):
                    raise ValueError(f"no object; {expected}")
                yield cell(nested(row, source), limit), cell(nested(row, target), limit)
            except json.JSONDecodeError as exc:  # which knows of one line alone
                yield WrongRow(f"{name}, line {number}: {exc.msg}, column {exc.colno}; {expected}")
            except (ValueError, RecursionError) as exc:
                yield WrongRow(f"{name}, line {number}: {exc}")

"""Tables of text: TSV and CSV, with names of columns in the first line, or by number without."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import IO

from dist_embed.data.settings import Quoting
from dist_embed.data.text.lines import lines_of
from dist_embed.data.text.rows import (
    Column,
    CorpusError,
    Pair,
    WrongRow,
    listed,
    one_line,
    too_long,
)

Cells = list[str] | WrongRow
# Rows of blank lines, as each way to split them has them.
_BLANK: tuple[list[str], ...] = ([], [""])
# How often a file is read at most, for its quote signs without an end.
_ANEW = 16
_CHOOSE = (
    "set quoting to csv where cells are quoted as csv.writer and pandas do it, or to none where "
    "quote signs are text"
)


def table_pairs(
    file: IO[bytes], name: str, columns: tuple[Column, Column], limit: int, *,
    delimiter: str, quoting: Quoting,
) -> Iterator[Pair | WrongRow]:  # fmt: skip
    """Pairs of an open file that messages call ``name``.

    Args:
        file: the table; a blank end of it is no row.
        name: of the file.
        columns: names, which the first line has; or numbers from 1: then the first line is text,
            rows may have any number of further columns, and a blank line is an empty pair.
        limit: bytes of a line, and characters of a row over several.
        delimiter: between cells.
        quoting: `csv`: cells with a tab, a line end or a quote sign stand in quote signs, their own
            doubled; `none`: quote signs are text; `auto`: the first in CSV, the second in TSV, of
            which a file that looks quoted is refused.

    Raises CorpusError.
    """
    is_quoted = quoting == "csv" or (quoting == "auto" and delimiter == ",")
    lines = lines_of(file, name, limit)
    places: list[int] = []
    width = 0

    def fits(cells: list[str]) -> bool:
        return len(cells) == width if width else len(cells) > max(places, default=-1)

    rows = _without_blank_end(
        _quoted(lines, name, delimiter, limit, fits) if is_quoted else _plain(lines, delimiter)
    )
    must_tell = quoting == "auto" and not is_quoted
    if isinstance(columns[0], int) and isinstance(columns[1], int):
        places = [columns[0] - 1, columns[1] - 1]
    else:
        _, header = next(rows, (1, []))
        if isinstance(header, WrongRow):
            raise header
        places, width = _places(name, header, columns, delimiter), len(header)
    first: list[str] = []
    for number, cells in rows:
        if isinstance(cells, WrongRow):
            yield cells
            continue
        first = first or cells
        if must_tell and (
            _looks_quoted(cells, number == 1)
            or (not width and cells not in _BLANK and _looks_cut(cells, first))
        ):
            start = " | ".join(cells)[:80]
            raise CorpusError(f"{name}, line {number}: looks quoted ({start}): {_CHOOSE}")
        elif not width and cells in _BLANK:
            yield "", ""
        elif not fits(cells):
            wanted = f"the header has {width}" if width else f"column {max(places) + 1} is wanted"
            hint = f"; {_CHOOSE}" if must_tell and any('"' in one for one in cells) else ""
            yield WrongRow(f"{name}, line {number}: {len(cells)} columns, {wanted}{hint}")
        else:
            source, target = (cells[place] for place in places)
            yield (one_line(source), one_line(target)) if is_quoted else (source, target)


def _plain(lines: Iterator[str | WrongRow], delimiter: str) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(lines, start=1):
        yield number, line if isinstance(line, WrongRow) else line.split(delimiter)


def _quoted(
    lines: Iterator[str | WrongRow], name: str, delimiter: str, limit: int,
    fits: Callable[[list[str]], bool],
) -> Iterator[tuple[int, Cells]]:  # fmt: skip
    """Rows; what follows the first line of one that fails is read anew, for a quote sign too many
    takes all lines up to the next one. One over several lines fails unless ``fits``.
    """
    row: list[str | WrongRow] = []
    again: deque[str | WrongRow] = deque()
    size = 0
    fresh = anew = 0  # characters that have been read once, and again

    def fed() -> Iterator[str]:
        nonlocal size, fresh, anew
        while True:
            is_anew = bool(again)
            if (line := again.popleft() if again else next(lines, None)) is None:
                return
            row.append(line)
            text = line if isinstance(line, str) else ""
            size += len(text)
            fresh, anew = fresh + len(text) * (not is_anew), anew + len(text) * is_anew
            if anew > _ANEW * (fresh + limit):
                raise CorpusError(
                    f"{name}, line {first}: too many quote signs until here have no end; {_CHOOSE}"
                )
            if size > limit:
                raise csv.Error(
                    f"the row that begins here is {too_long(limit)}; does a quote sign have no end?"
                )
            yield text + "\n"

    # The module has one limit for all; ours is looked at above.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * limit))
    first, reader = 1, None
    while True:
        reader = reader or csv.reader(fed(), delimiter=delimiter, strict=True)
        row.clear()
        size = 0
        cells: Cells
        try:
            if (found := next(reader, None)) is None:
                return
            cells, is_sound = found, len(row) == 1 or fits(found)
        except csv.Error as exc:
            cells, is_sound = WrongRow(f"{name}, line {first}: {exc}"), False
        number = first
        if is_sound:
            cells = next((line for line in row if isinstance(line, WrongRow)), cells)
            first += len(row)
        else:
            again.extendleft(reversed(row[1:]))
            first, reader = first + 1, None
        yield number, cells


def _without_blank_end(rows: Iterator[tuple[int, Cells]]) -> Iterator[tuple[int, Cells]]:
    blank = 0
    for number, cells in rows:
        if cells in _BLANK:
            blank += 1
            continue
        yield from ((number - back, [""]) for back in range(blank, 0, -1))
        blank = 0
        yield number, cells


def _looks_quoted(cells: Sequence[str], is_all: bool) -> bool:
    """Whether a row has quote signs as only somebody who quotes cells writes them; with ``is_all``
    also where each cell stands in some.
    """
    quoted = [one for one in cells if len(one) > 1 and one[0] == one[-1] == '"']
    if is_all and len(quoted) == len(cells) > 0:
        return True
    doubled = (one[1:-1] for one in quoted if '""' in one[1:-1])
    return any('"' not in one.replace('""', "") for one in doubled)


def _looks_cut(cells: Sequence[str], first: Sequence[str]) -> bool:
    """Whether a row has part of a quoted cell that was cut at a tab or at the end of a line: the
    next cell of the ``first`` row ends it, or another row has another number of cells.
    """
    if cells is first:
        return any(
            _opens(one) and _opens(after[::-1]) and not _opens(after)
            for one, after in pairwise(cells)
        )
    return len(cells) != len(first) and any(map(_opens, (*first, *cells)))


def _opens(cell: str) -> bool:
    return cell.startswith('"') and cell.count('"') % 2 == 1


def _places(
    name: str, header: Sequence[str], columns: tuple[Column, Column], delimiter: str
) -> list[int]:
    if not header:
        raise CorpusError(f"{name}: is empty; the first line has the columns' names")
    if len(header) == 1:
        signs = "commas" if delimiter == "," else "tabs"
        raise CorpusError(
            f"{name}, line 1: expected names of columns with {signs} between them, among them "
            f"{columns[0]!r} and {columns[1]!r}, found {header[0][:80]!r}"
        )
    for column in columns:
        if (there := header.count(str(column))) != 1:
            found = f"{there} columns" if there else "no column"
            quoted = f"; {_CHOOSE}" if any(one.startswith('"') for one in header) else ""
            raise CorpusError(
                f"{name}: {found} {column!r}; there are {listed(header)}{quoted}; where the first "
                "line is text, give columns by number: 1, 2, …"
            )
    return [header.index(str(column)) for column in columns]

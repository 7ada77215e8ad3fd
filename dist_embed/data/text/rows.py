"""What all readers of corpora share: pairs, what is wrong with a file or a row, cells of text.

A reader of a format yields its rows in order: a `Pair`, or a `WrongRow` in the place of one that
cannot be read, which whoever asks refuses or passes over. It raises `CorpusError` where no more can
be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dist_embed.errors import UserError

Pair = tuple[str, str]
# A column's name, or its number from 1 in files whose first line is text.
Column = str | int
_LINE_ENDS = re.compile(r"[\r\n]+")


class CorpusError(UserError):
    """A corpus cannot be read; the message names the file and the line."""


class WrongRow(CorpusError):
    """One row of a corpus cannot be read."""


def too_long(limit: int) -> str:
    """What is wrong with a line of a corpus, or a cell, of more bytes."""
    return f"longer than max_line_bytes={limit:,}"


def not_utf8(exc: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are no text."""
    return f"not valid UTF-8 (byte {exc.object[exc.start]:#04x} at column {exc.start + 1})"


def one_line(text: str) -> str:
    """``text`` with spaces for the ends of its lines."""
    return _LINE_ENDS.sub(" ", text)


def cell(value: Any, limit: int) -> str:
    """A cell of a table as one line of text; a missing one is empty. Raises ValueError."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as exc:
            raise ValueError(not_utf8(exc)) from None
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not text")
    try:
        if len(value) > limit or len(value.encode()) > limit:
            raise ValueError(too_long(limit))
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"half a character, {exc.object[exc.start]!a}, as JSON can write"
        ) from None
    return one_line(value)


def nested(value: Any, name: str) -> Any:
    """What a row holds under ``name``, which may lead through others: ``translation.en``.

    None where it is missing on the way; raises ValueError where there is no such name.
    """
    if value is None:
        return None
    names = value if isinstance(value, dict) else {}
    if isinstance(value, list) and all(isinstance(one, tuple) for one in value):
        names = dict(value)  # a map of Arrow
    if name in names:
        return names[name]
    first, _, rest = name.partition(".")
    if rest and first in names:
        return nested(names[first], rest)
    raise ValueError(f"no {name!r}; there are {listed(names)}")


def names_alone(name: str, columns: Sequence[Column]) -> tuple[str, str]:
    """``columns``, both names. Raises CorpusError where they are numbers."""
    source, target = columns
    if isinstance(source, int) or isinstance(target, int):
        raise CorpusError(f"{name}: columns have names here, {source} and {target} are none")
    return source, target


def listed(names: Sequence[Any] | dict[Any, Any]) -> str:
    """Names, for a message."""
    return ", ".join(str(name)[:80] for name in list(names)[:20]) or "none"

"""What is given to a function: taken where it can be, else refused by name, value and what may be.

Nothing here imports torch: the launching process uses it too.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

from dist_embed.errors import UserError


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` as an int, of numpy's and torch's too. Raises UserError: it is none of those."""
    allowed = f", at least {least}" if most is None else f" in {least} … {most:,}"
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of a tensor of several values
        number = None
    fits = number is not None and number >= least and (most is None or number <= most)
    if number is None or isinstance(value, bool) or not fits:
        raise UserError(f"{name}: {shown(value)} is not allowed: a whole number{allowed}")
    return number


def real_number(name: str, value: Any, *, positive: bool = False) -> float:
    """``value`` as a float. Raises UserError: it is none from 0 on, or not above where that is
    ``positive``.
    """
    if getattr(value, "ndim", None) == 0:  # numpy's and torch's
        value = value.item()
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    fits = math.isfinite(number) and (number > 0 if positive else number >= 0)
    if isinstance(value, bool) or not fits:
        allowed = "a number above 0" if positive else "a number, at least 0"
        raise UserError(f"{name}: {shown(value)} is not allowed: {allowed}")
    return number


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise UserError unless ``value`` is one of the words ``allowed``."""
    known = list(allowed)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name}: {shown(value)} is not allowed: one of {', '.join(known)}")


def function(name: str, value: Any) -> None:
    """Raise UserError unless ``value`` can be called."""
    if not callable(value):
        raise UserError(f"{name}: {shown(value)} is not allowed: a function")


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of characters (surrogates) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value for a message: as it is written, or where that is long its kind."""
    text = repr(value)
    short = len(text) <= 60 and "\n" not in text
    return text if short else f"a {type(value).__name__}"

"""What is given to a function: taken where it can be, else refused by name, value and what may be.

Nothing here imports torch: the launching process uses it too.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Iterable
from typing import Any

from dist_embed.errors import UserError
from dist_embed.passwords import masked


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` as an int, of numpy's and torch's too. Raises UserError: it is none of those."""
    plain = _plain(value)
    try:
        number = None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f", at least {least}" if most is None else f" in {least} … {most:,}"
        raise UserError(f"{name}: {shown(value)} is not allowed: a whole number{allowed}")
    return number


def real_number(name: str, value: Any, *, positive: bool = False, most: float = math.inf) -> float:
    """``value`` as a float. Raises UserError: it is none from 0 on, or not above where that is
    ``positive``; or it is above ``most``.
    """
    plain = _plain(value)
    is_number = isinstance(plain, numbers.Real) and not isinstance(plain, bool)
    try:
        number = float(plain) if is_number else math.nan
    except OverflowError:
        number = math.inf
    fits = math.isfinite(number) and (number > 0 if positive else number >= 0) and number <= most
    if not fits:
        allowed = "a number above 0" if positive else "a number, at least 0"
        allowed += "" if most == math.inf else f", at most {most:,.10g}"
        raise UserError(f"{name}: {shown(value)} is not allowed: {allowed}")
    return number


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's; None for arrays with dimensions."""
    dimensions = getattr(value, "ndim", None)
    return value.item() if dimensions == 0 else None if dimensions else value


def true_or_false(name: str, value: Any) -> None:
    """Raise UserError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{name}: {shown(value)} is not allowed: True or False")


def can_be_listed(value: Any) -> bool:
    """Whether it is iterable; arrays without dimensions only look so."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def of_kind(name: str, value: Any, kind: type, allowed: str) -> None:
    """Raise UserError unless ``value`` is of a class; ``allowed`` says which, to a user."""
    if not isinstance(value, kind):
        raise UserError(f"{name}: {shown(value)} is not allowed: {allowed}")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise UserError unless ``value`` is one of the words ``allowed``."""
    known = list(allowed)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name}: {shown(value)} is not allowed: one of {', '.join(known)}")


def function(name: str, value: Any) -> None:
    """Raise UserError unless ``value`` can be called."""
    if not callable(value):
        raise UserError(f"{name}: {shown(value)} is not allowed: a function")


def path_as_text(path: os.PathLike[str]) -> str:
    """Raises UserError: it is none of text, or was made of a URL, whose two slashes pathlib makes
    one of.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise UserError(f"{shown(path)} is not allowed: a path as str or pathlib.Path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(f"{path!r} is not allowed: a URL is given as text, not as a path")
    return text


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of characters (surrogates) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def typed(text: str) -> str:
    """A word of a command line, whose bytes are UTF-8 whatever the locale takes them for."""
    try:
        return text if is_unicode(text) else os.fsencode(text).decode()
    except UnicodeError:
        return text


def shown(value: object) -> str:
    """A value for a message: as it is written, or where that is long its kind."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = ""
    short = 0 < len(text) <= 60 and "\n" not in text
    return text if short else f"a {type(value).__name__}"


def begins(text: str, most: int = 200) -> str:
    """A text for a message, or how it begins."""
    text = masked(text)  # a password that is cut would not be known for one
    return text if len(text) <= most else f"{text[:most]}…"

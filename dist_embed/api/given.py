"""What scripts give the functions of this package, taken or refused before anything is done."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from dist_embed.config.checks import check
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage


def config_given(value: Any) -> Config:
    """A configuration as it is. Raises UserError for anything else, and where settings cannot work
    together: one that a script has made has been checked key by key.
    """
    if isinstance(value, Config):
        check(value)
        return value
    hint = ": dist_embed.load_config reads a file" if isinstance(value, str | PathLike) else ""
    raise UserError(f"config: {value!r} is not allowed: a dist_embed.Config{hint}")


def run_given(value: Any) -> str:
    """The absolute address of a run's folder. Raises UserError."""
    return storage.absolute(storage.given(value, "run"))


def texts_given(value: Any, name: str) -> list[str]:
    """Some texts. Raises UserError for a lone one, and for what is none.

    Args:
        value: what was given.
        name: of the argument, for the message.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        hint = f": put it into a list, [{value!r}]" if isinstance(value, str) else ""
        raise UserError(f"{name}: {value!r} is not allowed: a list of str{hint}")
    found = list(value)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"{name}[{number}]: {text!r} is not allowed: str")
    return found

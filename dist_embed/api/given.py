"""What scripts give the functions of this package, taken or refused before anything is done."""

from __future__ import annotations

from os import PathLike
from typing import Any

from pydantic import BaseModel

from dist_embed.arguments import (
    begins,
    can_be_listed,
    function,
    is_unicode,
    shown,
    whole_number,
)
from dist_embed.config.checks import check, check_written
from dist_embed.config.schema import Config, Reading
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage

MOST_PROFILED = 100  # steps of a trace: each takes some MB of memory until it is written


def config_given(value: Any, *, to_train: bool = True) -> Config:
    """A configuration, checked as a file's is: ``Config(…)`` has looked at each key by itself, and
    ``model_copy``, by which scripts vary one, at nothing. Raises UserError, for anything else too.

    Where it is not ``to_train``, it may have what would do nothing, as a trained run's may.
    """
    storage.check_working_folder()
    if isinstance(value, Config):
        config = Config.model_validate(_as_given(value), context=Reading("config"))
        (check_written if to_train else check)(config)
        return config
    hint = ": dist_embed.load_config reads a file" if isinstance(value, str | PathLike) else ""
    raise UserError(f"config: {value!r} is not allowed: a dist_embed.Config{hint}")


def _as_given(value: Any) -> Any:
    """Sections as dictionaries of what was given, also of what is no key."""
    if not isinstance(value, BaseModel):
        return value
    held = vars(value)
    return {name: _as_given(held[name]) for name in held if name in value.model_fields_set}


def run_given(value: Any) -> str:
    """The absolute address of a run's folder. Raises UserError."""
    storage.check_working_folder()
    return storage.absolute(storage.given(value, "run"))


def profile_given(value: Any, max_steps: int) -> tuple[int, int]:
    """The first and the last step to record, of a run of so many. Raises UserError."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UserError(
            f"profile: {value!r} is not allowed: the first and the last step, as (8, 12)"
        )
    first = whole_number("profile: the first step", value[0], 1, max_steps)
    most = min(max_steps, first + MOST_PROFILED - 1)
    return first, whole_number("profile: the last step", value[1], first, most)


def texts_given(value: Any, name: str) -> list[str]:
    """Some texts. Raises UserError for a lone one, and for what is none.

    Args:
        value: what was given.
        name: of the argument, for the message.
    """
    if isinstance(value, str | bytes) or not can_be_listed(value):
        hint = f": put it into a list, [{begins(repr(value))}]" if isinstance(value, str) else ""
        raise UserError(f"{name}: {begins(repr(value))} is not allowed: a list of str{hint}")
    found = list(value)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"{name}[{number}]: {shown(text)} is not allowed: str")
        if not is_unicode(text):
            raise UserError(
                f"{name}[{number}]: {text!r} is not allowed: it has half of a character"
            )
    return found


def on_event_given(value: Any) -> None:
    """Raise UserError where what is to take events cannot be called."""
    if value is not None:
        function("on_event", value)


def step_given(value: Any) -> int | None:
    """A checkpoint's step, or None. Raises UserError."""
    return None if value is None else whole_number("step", value, 1)

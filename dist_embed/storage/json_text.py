"""JSON of files that anybody may have damaged, or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")
Count = Annotated[int, Field(ge=0, lt=2**62)]


def from_json(text: str | bytes) -> Any:
    """The value of a text. Raises ValueError alone, of one that is nested too deep too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def as_kind(kind: type[T], values: Any, *, exact: bool = True) -> T:
    """A dataclass, and those in it, from what JSON has for it. Raises ValueError, with the first
    key that does not fit or, where it is to be ``exact``, that it has no field for: one of a later
    version may decide something.
    """
    try:
        # As JSON: lists are tuples there, and nothing else is taken for another type.
        made = TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{where}: {first['input']!r:.80}: {first['msg']}") from None
    for name in _unknown(made, values) if exact else ():
        raise ValueError(f"{name}: not known to this version")
    return made


def _unknown(made: Any, values: Any) -> Iterator[str]:
    """Keys of ``values`` that dataclasses made of them have no field for."""
    if is_dataclass(made):
        known = {field.name for field in fields(made)}
        yield from (str(key) for key in values if key not in known)
        for name in known & values.keys():
            yield from _unknown(getattr(made, name), values[name])
    elif isinstance(made, dict):
        for key in made:
            yield from _unknown(made[key], values.get(str(key)))
    elif isinstance(made, (list, tuple)):
        for one, value in zip(made, values, strict=True):
            yield from _unknown(one, value)

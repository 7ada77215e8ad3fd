"""JSON of files that anybody may have damaged, or written."""

from __future__ import annotations

import json
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


def as_kind(kind: type[T], values: Any) -> T:
    """A dataclass, and those in it, from what JSON has for it. Raises ValueError, with the first
    key that does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{where}: {first['input']!r:.80}: {first['msg']}") from None

"""Values that runs of earlier versions were trained with, and that are out of range today."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from dist_embed.section import MAY_CHANGE, known_keys

M = TypeVar("M", bound=BaseModel)


class _Outside(NamedTuple):
    key: tuple[str, ...]
    value: Any
    nearest: Any  # that is allowed


def taken_all_the_same(
    values: Any, model: type[M], validate: Callable[[Any], M], say: Callable[[str], None]
) -> M:
    """What ``validate`` makes of a trained run's values, also where some are out of range.

    A key that decides a result keeps its value, by which the run is known. One that may change is
    given the nearest that is allowed, for that is what works today, and ``say`` takes a line.

    Raises ValidationError: there are other mistakes, which it names alone.
    """
    try:
        return validate(values)
    except ValidationError as exc:
        outside = _outside(exc, values)
    for key, _, nearest in outside:
        values = _changed(values, key, nearest)
    taken = validate(values)
    for key, value, nearest in outside:
        name = ".".join(key)
        if MAY_CHANGE in known_keys(model)[name].marks:
            say(f"{name}={value} of an earlier version is out of range now, read as {nearest}")
        else:
            taken = _changed(taken, key, value)
    return taken


def _outside(error: ValidationError, values: Any) -> list[_Outside]:
    """The values out of range, among other mistakes."""
    nearest = ((one["loc"], _nearest(one.get("ctx", {}))) for one in error.errors())
    return [_Outside(*_at(at, values), bound) for at, bound in nearest if bound is not None]


def _at(location: Sequence[str | int], values: Any) -> tuple[tuple[str, ...], Any]:
    """Where an error is, without what pydantic adds of members of unions, and the value there."""
    key: tuple[str, ...] = ()
    for part in location:
        if isinstance(values, dict) and part in values:
            key, values = (*key, str(part)), values[part]
    return key, values


def _nearest(bounds: dict[str, Any]) -> Any:
    """The nearest number within a bound that pydantic names; None where it names none."""
    for name, towards in (("le", 0), ("ge", 0), ("lt", -1), ("gt", 1)):
        if name in bounds:
            bound = bounds[name]
            if towards and isinstance(bound, float):
                return math.nextafter(bound, towards * math.inf)
            return bound + towards
    return None


def _changed(whole: Any, key: Sequence[str], value: Any) -> Any:
    """A section, or a mapping, with another value of a key in it."""
    if not key:
        return value
    name, *below = key
    if isinstance(whole, BaseModel):
        return whole.model_copy(update={name: _changed(getattr(whole, name), below, value)})
    return {**whole, name: _changed(whole[name], below, value)}

"""What sections of a configuration are made of: their base class, types of values, and marks.

A section lies in the module ``settings`` of the component that it configures, which is handed it as
it is. All that is known of a key stands with it: type, default and meaning as pydantic has them,
and here what follows from it for runs, prepared data and studies that there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from dist_embed.arguments import path_as_text, whole_number
from dist_embed.errors import ConfigError
from dist_embed.mistakes import mistakes

# Far beyond what there is of anything, and what is computed from it still is a number.
MOST_OF_ANYTHING = 10**12
PositiveInt = Annotated[int, Field(gt=0, le=MOST_OF_ANYTHING)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST_OF_ANYTHING)]
PositiveFloat = Annotated[float, Field(gt=0, le=MOST_OF_ANYTHING, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MOST_OF_ANYTHING, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Width = Annotated[int, Field(gt=0, le=2**20)]  # of vectors and layers
Workers = Annotated[int, Field(gt=0, le=100_000)]
Cores = Annotated[int, Field(gt=0, le=4096)]  # of a machine
MiB = Annotated[float, Field(gt=0, le=10**9, allow_inf_nan=False)]
GiB = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
# 23 days: `poll` takes milliseconds as an int of 32 bits.
Timeout = Annotated[float, Field(ge=0.1, le=2_000_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=2_000_000, allow_inf_nan=False)]
Minutes = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Hours = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]


def _no(value: Any) -> Any:
    return "no" if value is False else value


# What the JSON schema says of a key with the mark.
EXPERT_IN_SCHEMA = "x-expert"
# YAML reads a bare `no` as false.
MaybeNo = BeforeValidator(_no)


def paths_as_text(value: Any) -> Any:
    """`os.PathLike` as text, also in lists and mappings; all else as it is."""
    if isinstance(value, os.PathLike):
        return path_as_text(value)
    if isinstance(value, list):
        return [paths_as_text(one) for one in value]
    if isinstance(value, dict):
        return {name: paths_as_text(one) for name, one in value.items()}
    return value


# Of a path or URL, or several, which a script may give as `pathlib.Path`.
Paths = BeforeValidator(paths_as_text)


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Told(ModelMetaclass):
    """Mistakes in what a script makes a section of are told in our words, in place of pydantic's.
    Sections within others are made without a call: the outermost tells of all.
    """

    def __call__(cls: Any, *given: Any, **values: Any) -> Any:
        try:
            return super().__call__(*given, **values)
        except ValidationError as exc:
            raise ConfigError(mistakes(exc, cls, cls.__name__)) from None


class Section(BaseModel, metaclass=_Told):
    """A part of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        """A section of which all lines are comments is None to YAML."""
        return {} if values is None else values

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, field in cls.model_fields.items():
            if EXPERT in field.metadata:
                properties[name][EXPERT_IN_SCHEMA] = True
        return schema


class Mark(Enum):
    """What else is known of a key: ``Annotated[int, MAY_CHANGE]``. A section's are its keys' too.

    A key without marks decides what a step does and, under ``data`` and ``tokenizer``, what
    prepared data hold; everybody is told of it first.
    """

    MAY_CHANGE = "A run may go on with another value: it does not change what a step does."
    NOT_PREPARED = "Prepared data hold the same with any value."
    NO_RESULT = (
        "A run's result does not depend on it, nor its speed: a place, processes, failures that "
        "are outlived, waits. So it may change, and prepared data are the same."
    )
    CORPUS_FILES = (
        "Names of files: prepared data, and the runs on them, are known by what is in them."
    )
    EXPERT = "Seldom needed: told behind the others."


MAY_CHANGE, NOT_PREPARED, NO_RESULT = Mark.MAY_CHANGE, Mark.NOT_PREPARED, Mark.NO_RESULT
CORPUS_FILES, EXPERT = Mark.CORPUS_FILES, Mark.EXPERT


@dataclass(frozen=True)
class Later:
    """Marks a key that came later; what is older did as with ``before``.

    Runs and prepared data that have that value are known, by their digests, as the older ones are.
    """

    before: Any


@dataclass(frozen=True)
class Known:
    """The marks of a key, with those of the sections that it lies in."""

    marks: frozenset[Mark]
    later: Later | None

    def as_before(self, value: Any) -> bool:
        """Whether the key came later, and with ``value`` all is as it was without."""
        return self.later is not None and bool(value == self.later.before)


@cache
def known_keys(model: type[BaseModel]) -> dict[str, Known]:
    """By dotted key what is known of it; of a section's keys, of sections in it and of theirs."""
    return dict(_keys(model, "", frozenset()))


def keys_marked(model: type[BaseModel], mark: Mark) -> set[str]:
    """The dotted keys with a mark."""
    return {key for key, known in known_keys(model).items() if mark in known.marks}


def whole_number_for(model: type[BaseModel], key: str, name: str, value: Any) -> int:
    """``value``, given in place of a section's ``key``, as a whole number that the key may be.

    Raises UserError, which calls it ``name``.
    """
    found = model.model_json_schema()["properties"][key]
    limits = next(one for one in found.get("anyOf", [found]) if one.get("type") == "integer")
    least = limits["minimum"] if "minimum" in limits else limits["exclusiveMinimum"] + 1
    return whole_number(name, value, least, limits["maximum"])


def _keys(
    model: type[BaseModel], prefix: str, above: frozenset[Mark]
) -> Iterator[tuple[str, Known]]:
    for name, field in model.model_fields.items():
        marks = above | {mark for mark in field.metadata if isinstance(mark, Mark)}
        if NO_RESULT in marks:
            marks |= {MAY_CHANGE, NOT_PREPARED}
        later = next((mark for mark in field.metadata if isinstance(mark, Later)), None)
        yield f"{prefix}{name}", Known(marks, later)
        for option in (field.annotation, *get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from _keys(option, f"{prefix}{name}.", marks)

"""What is wrong with a configuration, as its user is told: a line for each mistake."""

from __future__ import annotations

import difflib
from inspect import getdoc
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def mistakes(error: ValidationError, whole: type[BaseModel], origin: str) -> str:
    """A line for each: the key, its value, what is allowed and, for an unknown key, the nearest
    valid one.

    Args:
        error: what pydantic has found.
        whole: the section that was validated.
        origin: where the values are from.
    """
    # Of a number or a word pydantic tells why it is neither; the description has the word.
    errors = [e for e in error.errors() if not str(e["loc"][-1]).startswith("literal[")]
    return "\n".join(_explain(error, whole, origin) for error in errors)


def _explain(error: Any, whole: type[BaseModel], origin: str) -> str:
    location = list(error["loc"])
    if error["type"] != "extra_forbidden":  # pydantic adds which member of a union it tried
        members = ("str", "list[str]", "constrained-float", "constrained-int")
        location = [part for part in location if part not in members]
    key = ".".join(str(part) for part in location)
    model, field = _model_at(whole, location)
    where = f"{origin}: {key}"
    if error["type"] == "extra_forbidden":
        names = list(model.model_fields) if model is not None else []
        nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*map(str, location[:-1]), nearest[0]])!r}? "
            if nearest
            else ""
        )
        return (
            f"{where}: unknown key (value {error['input']!r}); {hint}valid here: {', '.join(names)}"
        )
    if error["type"] == "missing":
        return f"{where}: missing; {_description(model, field)}"
    allowed = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: {error['input']!r} is not allowed: {allowed}; {_description(model, field)}"


def _model_at(whole: type[BaseModel], location: list[Any]) -> tuple[type[BaseModel] | None, str]:
    """The section that holds the last part of a location, and that part's name."""
    model: type[BaseModel] | None = whole
    for part in location[:-1]:
        if model is None or part not in model.model_fields:
            return None, str(location[-1])
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return model, str(location[-1])


def _description(model: type[BaseModel] | None, field: str) -> str:
    if model is None or field not in model.model_fields:
        return "see docs/configuration.md"
    found = model.model_fields[field]
    return found.description or found.title or getdoc(found.annotation) or field

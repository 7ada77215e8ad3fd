"""What is wrong with a configuration, as its user is told: a line for each mistake."""

from __future__ import annotations

import difflib
from inspect import getdoc
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_MEMBERS = ("str", "list[str]", "constrained-float", "constrained-int")  # of unions


def mistakes(
    error: ValidationError, whole: type[BaseModel], origin: str,
    page: str = "docs/configuration.md",
) -> str:  # fmt: skip
    """A line for each: the key, its value, what is allowed and, for an unknown key, the nearest
    valid one.

    Args:
        error: what pydantic has found.
        whole: the section that was validated.
        origin: where the values are from.
        page: what tells of all keys.
    """
    # Of a number or a word pydantic tells why it is neither; the description has the word.
    errors = [e for e in error.errors() if not _is_literal(_last(e))]
    # Of a number or a section likewise: the one that was meant has been looked into.
    errors = [e for e in errors if not (e["type"] == "model_type" and _is_section(_last(e)))]
    looked_into = {e["loc"][:i] for e in errors for i, at in enumerate(e["loc"]) if _is_section(at)}
    errors = [e for e in errors if _last(e) not in _MEMBERS or e["loc"][:-1] not in looked_into]
    return "\n".join(_explain(error, whole, origin, page) for error in errors)


def _last(error: Any) -> Any:
    """The end of where an error is; empty for one in the whole."""
    return (error["loc"] or ("",))[-1]


def _is_section(part: Any) -> bool:
    """Whether a part of a location is the name of a section's class, which a union may be of."""
    sections = (one for base in BaseModel.__subclasses__() for one in base.__subclasses__())
    return part in {section.__name__ for section in sections}


def _is_literal(part: Any) -> bool:
    return str(part).startswith("literal[")


def _explain(error: Any, whole: type[BaseModel], origin: str, page: str) -> str:
    location = list(error["loc"])
    if error["type"] != "extra_forbidden":  # pydantic adds which member of a union it tried
        location = [part for part in location if part not in _MEMBERS]
    location = [part for part in location if not _is_section(part)]
    where = f"{origin}: {'.'.join(map(str, location))}" if location else origin
    model, field = _model_at(whole, [part for part in location if isinstance(part, str)])
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
        return f"{where}: missing; {_description(model, field, page)}"
    allowed = error["msg"][0].lower() + error["msg"][1:]
    said = f"{error['input']!r} is not allowed: {allowed}"
    return f"{where}: {said}; {_description(model, field, page)}"


def _model_at(whole: type[BaseModel], names: list[str]) -> tuple[type[BaseModel] | None, str]:
    """The section that holds the last of some names, each in the section of the one before, or in
    one of a list of them; and that name, empty where there is none.
    """
    model: type[BaseModel] | None = whole
    for name in names[:-1]:
        if model is None or name not in model.model_fields:
            return None, names[-1]
        annotation = model.model_fields[name].annotation
        options = [annotation, *get_args(annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return model, names[-1] if names else ""


def _description(model: type[BaseModel] | None, field: str, page: str) -> str:
    if model is None or field not in model.model_fields:
        return f"see {page}"
    found = model.model_fields[field]
    return found.description or found.title or getdoc(found.annotation) or field

"""What is wrong with a configuration, as its user is told: a line for each mistake."""

from __future__ import annotations

import difflib
from inspect import getdoc
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dist_embed.arguments import begins, shown

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
    # A file of another kind may have lines of any length where a key would be.
    where = f"{origin}: {begins('.'.join(map(str, location)))}" if location else origin
    model, field = _model_at(whole, [part for part in location if isinstance(part, str)])
    if error["type"] == "extra_forbidden":
        names = list(model.model_fields) if model is not None else []
        nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*map(str, location[:-1]), nearest[0]])!r}? "
            if nearest
            else ""
        )
        said = f"unknown key (value {_shown(error['input'])})"
        return f"{where}: {said}; {hint}valid here: {', '.join(names)}"
    if error["type"] == "missing":
        return f"{where}: missing; {_description(model, field, page)}"
    said = f"{_shown(error['input'])} is not allowed: {_allowed(error)}"
    return f"{where}: {said}; {_description(model, field, page)}"


def _shown(value: Any) -> str:
    try:
        return begins(repr(value))
    except ValueError:  # an int of thousands of digits
        return shown(value)


def _allowed(error: Any) -> str:
    """What pydantic says of it, and how what was meant is written."""
    given = error["input"]
    if error["type"] == "model_type":
        return "input should be a mapping of keys to values"
    said = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "string_type" and isinstance(given, bool):
        words, one = ("yes, on and true", "yes") if given else ("no, off and false", "no")
        return f'{said} (YAML takes {words} for {given}; a text is written in quotes, "{one}")'
    if error["type"] == "string_type" and isinstance(given, int | float):
        return f"{said} (a text of digits is written in quotes, on a command line '\"…\"')"
    is_whole = isinstance(given, float) and abs(given) < 2**53 and given == int(given)
    if error["type"] == "int_type" and is_whole:
        return f"{said}, without a point or an exponent: {int(given)}"
    return said


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a value of this type may be."""
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _model_at(whole: type[BaseModel], names: list[str]) -> tuple[type[BaseModel] | None, str]:
    """The section that holds the last of some names, each in the section of the one before, or in
    one of a list of them; and that name, empty where there is none.
    """
    model: type[BaseModel] | None = whole
    for name in names[:-1]:
        if model is None or name not in model.model_fields:
            return None, names[-1]
        model = model_in(model.model_fields[name].annotation)
    return model, names[-1] if names else ""


def _description(model: type[BaseModel] | None, field: str, page: str) -> str:
    if model is None or field not in model.model_fields:
        return f"see {page}"
    found = model.model_fields[field]
    return found.description or found.title or getdoc(found.annotation) or field

"""Pages of all keys, written from the schemas: docs/configuration.md, docs/studies/keys.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from dist_embed.config.schema import Config
from dist_embed.section import (
    EXPERT_IN_SCHEMA,
    MAY_CHANGE,
    MOST_OF_ANYTHING,
    keys_marked,
    known_keys,
)

_HEAD = """\
# Configuration

One YAML file describes a run; `dist-embed train CONFIG key.sub=value …` replaces single values.
`${section.key}` refers to another key, its default too, `${oc.env:NAME}` to a variable of the
environment; `\\${` is written for a `${` that is meant. Unknown keys, wrong types, values out of
their range and impossible combinations are refused with one message (exit code 2), and so are
spellings that YAML takes for something else: `010` (octal), `1:30` (base 60), on the command line a
value with ` #` in it. A text that looks like a number or like `no` is written in quotes:
`run.uri='"123"'`. Relative paths are relative to the folder in which the command is called.

This page is written by `dist-embed config reference`; the JSON schema for editors
(`configs/schema.json`) by `dist-embed config schema`; `dist-embed config show CONFIG` prints a
configuration with every default spelled out.

Where a table names no largest value of a number, it is 10¹².

A section's first table has the keys that a new run is made of. The keys under "Seldom needed" are
for experts: their defaults are right for most runs.

When a run is resumed, the values of these keys and sections may change:

MAY_CHANGE

For all others `dist-embed train` refuses a run folder that was started with another value, and
names the keys. `--force` goes on from the newest checkpoint with the new values; values that change
shape or type of a saved tensor, or the training data, are still refused. Prepared data may be
moved, and prepared again with other held-out texts; corpora may be moved and renamed.
`tokenizer.normalize` and `tokenizer.pieces` need only fit the data, whose tokenizers are compared.
"""


def configuration_page() -> str:
    """The page in Markdown."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    parts = [_HEAD.replace("MAY_CHANGE", _may_change())]
    for section, entry in schema["properties"].items():
        definition = definitions[entry["$ref"].rsplit("/", 1)[-1]]
        parts.append(f"## `{section}`\n\n{definition['description'].strip()}\n")
        parts.append(_table(definition, definitions))
        parts += _nested_parts(section, definition, definitions)
    return "\n".join(parts)


def _may_change() -> str:
    """The keys and whole sections whose values may change when a run is resumed, a line each of a
    section's.
    """
    marked = keys_marked(Config, MAY_CHANGE)
    lines = []
    for section in Config.model_fields:
        keys = [
            key for key in known_keys(Config) if key in marked and key.startswith(f"{section}.")
        ]
        named = [section] if section in marked else keys
        if named:
            lines.append("- " + ", ".join(f"`{key}`" for key in named))
    return "\n".join(lines)


def keys_page(head: str, model: type[BaseModel]) -> str:
    """A page of one section and those in it, in Markdown: ``head``, then tables of the keys."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return "\n".join([head, _table(schema, definitions), *_nested_parts("", schema, definitions)])


# Sections of one form are told once, under the first key, with the others beside it.
_SAME_FORM = {"train": "validation", "validation": "test", "source": "target", "target": "output"}


def _nested_parts(
    path: str, definition: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[str]:
    """The sections inside a section, at any depth."""
    for key, value in definition["properties"].items():
        nested = _nested(value, definitions)
        if nested is None or key in _SAME_FORM.values():
            continue
        also = ""
        other = _SAME_FORM.get(key)
        while other:
            also += f", `{other}`"
            other = _SAME_FORM.get(other)
        place = f"{path}.{key}" if path else key
        yield f"### `{place}`{also}\n\n{nested['description'].strip()}\n"
        yield _table(nested, definitions)
        yield from _nested_parts(place, nested, definitions)


def _table(definition: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The keys that a new run is made of, then those for experts."""
    keys: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    for key, value in definition["properties"].items():
        keys[EXPERT_IN_SCHEMA in value][key] = value
    required = definition.get("required", [])
    tables = [_rows(part, required, definitions) for part in keys.values() if part]
    return "\nSeldom needed:\n\n".join(tables)


def _rows(keys: dict[str, Any], required: list[str], definitions: dict[str, Any]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in keys.items():
        given = value.get("default")
        if key in required:
            default = "required"
        elif given is None or (isinstance(given, dict | list) and _nested(value, definitions)):
            default = "–"
        else:
            default = f"`{_as_yaml(given)}`"
        meaning = value.get("description", "")
        lines.append(f"| `{key}` | {_type(value, definitions)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nested(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    options = [value, *value.get("anyOf", [])]
    for option in [*options, *(option["items"] for option in options if "items" in option)]:
        if "$ref" in option:
            found: dict[str, Any] = definitions[option["$ref"].rsplit("/", 1)[-1]]
            return found
    return None


def _type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    options = [o for o in value.get("anyOf", [value]) if o.get("type") != "null"]
    if _nested(value, definitions) is not None:
        if "items" in value:
            return "list of sections, see below"
        others = [_type(option, definitions) for option in options if "type" in option]
        return " or ".join([*others, "section, see below"])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    names = []
    for option in options:
        if "const" in option:
            names.append(f"`{option['const']}`")
            continue
        if option["type"] == "array" and "enum" in option["items"]:
            chosen = ", ".join(f"`{choice}`" for choice in option["items"]["enum"])
            names.append(f"list of {chosen}")
            continue
        name = _name(option)
        for sign, bound in (
            ("≥", "minimum"), (">", "exclusiveMinimum"),
            ("≤", "maximum"), ("<", "exclusiveMaximum"),
        ):  # fmt: skip
            if bound in option and option[bound] != MOST_OF_ANYTHING:
                name += f" {sign} {option[bound]:,.10g}"
        names.append(name)
    return " or ".join(names)


def _name(option: dict[str, Any]) -> str:
    if option["type"] == "array":
        return f"list of {_name(option['items'])}"
    names = {"string": "text", "boolean": "true or false", "object": "mapping"}
    return names.get(option["type"], str(option["type"]))

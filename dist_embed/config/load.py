"""From a YAML file and dotted overrides to a checked `Config`; one clear message per mistake."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from os import PathLike
from types import NoneType
from typing import Any, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from dist_embed.arguments import begins, can_be_listed, function, shown
from dist_embed.config.checks import check, check_written
from dist_embed.config.renamed import say_once
from dist_embed.config.schema import Config, Reading
from dist_embed.config.written import escaped, mapping_in, value_in
from dist_embed.errors import ConfigError, UserError
from dist_embed.mistakes import model_in
from dist_embed.section import EXPERT_IN_SCHEMA, paths_as_text
from dist_embed.storage import uri as storage


def load_config(
    path: str | PathLike[str],
    overrides: Iterable[str] | Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None] = say_once,
) -> Config:
    """Read a YAML file (local or URL), apply overrides, resolve and check.

    Overrides are texts ``key.sub=value``, or a mapping of such keys to values.

    ``say`` takes a line for each key that has another name now; of its own accord it goes to
    standard error.

    Raises:
        ConfigError: names the key, its value, what is allowed and, for an unknown key, the
            nearest valid one.
    """
    function("say", say)
    try:
        path = storage.given(path, "path")
    except UserError as exc:
        raise ConfigError(str(exc)) from None
    changes = [] if overrides is None else list(_changes(overrides))
    try:
        text = storage.read_given_text(path)
    except (OSError, UserError, ValueError) as exc:
        said = str(exc) or type(exc).__name__
        raise ConfigError(f"cannot read configuration {path!r}: {said}") from exc
    config = _build(_changed(mapping_in(text, path), changes), path, say)
    check_written(config)
    return config


def config_from_dict(
    values: dict[str, Any], origin: str = "configuration", *, of_run: bool = False
) -> Config:
    """A checked configuration from plain values, as `config_to_yaml` wrote them.

    ``of_run``: a run was trained with it. An earlier version may have taken what is refused now,
    and the run is there all the same: combinations are not looked at, and what is out of range is
    taken as `dist_embed.config.out_of_range` says.
    """
    if _refers_to_nothing(values):
        # The same in a fiftieth of the time: a command on a run reads its configuration anew.
        config = Config.model_validate(values, context=Reading(origin, _unsaid, of_run))
    else:
        config = _build(values, origin, _unsaid, of_run=of_run)
    if not of_run:
        check(config)
    return config


def config_to_yaml(config: Config) -> str:
    """The resolved configuration with every default spelled out."""
    # OmegaConf quotes what its own, wider reading of numbers would take for one: 1e5.
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config.model_dump())))


def json_schema() -> str:
    """The JSON schema of the configuration file, for editors."""
    schema = Config.model_json_schema()
    _allow_interpolation(schema)
    return json.dumps(schema, indent=1) + "\n"


def differences(old: Config, new: Config, *, but: Collection[str] = ()) -> list[str]:
    """The dotted keys whose values differ, with both values; without those of ``but``."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    return [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} here"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and key not in but
    ]


def _changes(overrides: Any) -> Iterator[tuple[str, str, Any]]:
    """Of each override how it was given, its key and its value as OmegaConf takes it."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if not isinstance(key, str) or not key:
                raise ConfigError(f"overrides: key {key!r} is not allowed: a dotted name, key.sub")
            yield f"{key}={shown(value)}", key, paths_as_text(value)
        return
    wanted = "a list of 'key.sub=value', or a mapping of dotted keys to values"
    if isinstance(overrides, str):
        said = repr(begins(overrides))
        raise ConfigError(f"overrides: {said} is not allowed: {wanted}: [{said}]")
    if not can_be_listed(overrides):
        raise ConfigError(f"overrides: {shown(overrides)} is not allowed: {wanted}")
    for override in overrides:
        key, separator, value = override.partition("=") if isinstance(override, str) else ("",) * 3
        if not separator or not key:
            raise ConfigError(f"override {shown(override)} is not of the form key.sub=value")
        said = begins(override, 100)
        yield said, key, value_in(value, f"override {said!r}")


def _changed(loaded: DictConfig, changes: list[tuple[str, str, Any]]) -> dict[str, Any]:
    for override, key, value in changes:
        try:
            OmegaConf.update(loaded, key, value, merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, AssertionError, AttributeError) as exc:
            raise ConfigError(f"override {override!r} cannot be applied: {exc}") from exc
    found: Any = OmegaConf.to_container(loaded)
    return found


def _unsaid(line: str) -> None:
    pass


def _build(
    values: dict[str, Any], origin: str, say: Callable[[str], None], *, of_run: bool = False
) -> Config:
    """From values as they are written, with their references."""
    raw = {"run": {}, **values}  # without it the key that has to be there is named
    whole = _with_defaults(raw, Config)
    _add_data_uri(raw, whole)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(whole), resolve=True)
    except OmegaConfBaseException as exc:
        reason = str(exc).split("\n")[0]
        raise ConfigError(f"{origin}: {exc.full_key or '?'}: {reason}") from exc
    written = _as_written(resolved, raw, Config, origin)
    return Config.model_validate(written, context=Reading(origin, say, of_run))


def _with_defaults(values: dict[Any, Any], kind: type[BaseModel]) -> dict[Any, Any]:
    """What is written, and beside it the defaults, to which a reference may be as well."""
    whole = dict(values)
    for name, field in kind.model_fields.items():
        below, given, default = model_in(field.annotation), values.get(name), field.get_default()
        always = isinstance(default, BaseModel) or field.is_required()
        if below and (isinstance(given, dict) or (given is None and always)):
            whole[name] = _with_defaults(given or {}, below)
        elif name not in values and not field.is_required():
            whole[name] = default
    return whole


def _add_data_uri(raw: dict[str, Any], whole: dict[str, Any]) -> None:
    """The one default that refers to another key; a file has it, for others may refer to it."""
    if not isinstance(whole["data"], dict) or "uri" in (raw.get("data") or {}):
        return
    run, uri = whole["run"], None
    if isinstance(run, dict):
        uri = run.get("uri")
    elif isinstance(run, str):  # a reference to a section
        uri = "${run.uri}"
    if isinstance(uri, str):
        whole["data"]["uri"] = storage.join(uri, "data")
        raw["data"] = {**(raw.get("data") or {}), "uri": whole["data"]["uri"]}
    else:
        del whole["data"]["uri"]


def _as_written(resolved: Any, raw: Any, kind: Any, origin: str) -> Any:
    """Without defaults, and references to numbers as numbers: they have become texts where they are
    of environment variables. What takes no text is read as if it stood there.

    Args:
        resolved: a section, or a value.
        raw: the same as it is written.
        kind: type of the key; None: there is no such key.
        origin: where it is, for errors.
    """
    if isinstance(raw, dict) and isinstance(resolved, dict):
        section = model_in(kind)
        fields = section.model_fields if section else {}
        return {
            name: _as_written(
                resolved[name], below, fields[name].annotation if name in fields else None,
                f"{origin}: {name}" if kind is Config else f"{origin}.{name}",
            )
            for name, below in raw.items()
        }  # fmt: skip
    is_referred = isinstance(raw, str) and "${" in raw and isinstance(resolved, str)
    return value_in(resolved, origin) if is_referred and not _takes_text(kind) else resolved


def _takes_text(kind: Any) -> bool:
    return kind in (str, None) or any(
        _takes_text(one) for one in get_args(kind) if one is not NoneType
    )


def _refers_to_nothing(values: dict[str, Any]) -> bool:
    """Whether OmegaConf would give these values back as they are."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(below) for key, below in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        if isinstance(value, str):
            return "${" not in value
        return value is None or type(value) in (bool, int, float)

    data = values.get("data")
    return isinstance(data, dict) and "uri" in data and plain(values)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _escaped(value: Any) -> Any:
    """As it is written in a file, where ``${`` would be a reference."""
    if isinstance(value, dict):
        return {name: _escaped(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_escaped(below) for below in value]
    return escaped(value) if isinstance(value, str) else value


def _allow_interpolation(node: Any) -> None:
    """Let an editor accept ``${…}`` wherever a scalar is expected."""
    scalars = ("integer", "number", "boolean")
    interpolation = {"type": "string", "pattern": r"\$\{.+\}"}
    if isinstance(node, dict):
        if node.get("type") in scalars or "enum" in node:
            outside = ("description", "default", "title", EXPERT_IN_SCHEMA)
            kept = {k: node.pop(k) for k in list(node) if k not in outside}
            node["anyOf"] = [kept, interpolation]
        elif any(option.get("type") in scalars for option in node.get("anyOf", [])):
            node["anyOf"].append(interpolation)
        for key, value in node.items():
            if key != "anyOf":
                _allow_interpolation(value)
    elif isinstance(node, list):
        for value in node:
            _allow_interpolation(value)

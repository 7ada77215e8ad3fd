"""YAML as people type it: looked at before it is read, for what it would take for another thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dist_embed.arguments import begins
from dist_embed.errors import ConfigError

# Of what a user may write, far beyond what anybody does: readers of YAML call themselves for each
# level, and libyaml's (0.2.5) ends the process where the stack does.
_MOST_LEVELS = 50
_MOST_REPEATED = 10_000  # values that aliases stand for
_MOST_DIGITS = 100
# Numbers to YAML 1.1: octal, and in base 60.
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_LONG = f"{{{_MOST_DIGITS + 1},}}"
_LONG_NUMBER = re.compile(rf"[-+]?(0x[0-9a-fA-F_]{_LONG}|0b[01_]{_LONG}|[0-9_]{_LONG})")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def mapping_in(text: str, origin: str) -> DictConfig:
    """A file's values, with their references. Raises ConfigError."""
    try:
        look_through(text, origin)
        loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as exc:
        raise ConfigError(f"{origin}: not valid YAML: {exc}") from exc
    except AssertionError:  # OmegaConf's answer to a bare number
        loaded = None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{origin}: expected a mapping of keys to values")
    return loaded


def value_in(text: str, origin: str) -> Any:
    """One value; a reference stays one. Raises ConfigError."""
    try:
        end = look_through(text, origin)
        if end < len(text.rstrip()):
            comment, quoted = begins(text[end:].strip(), 60), f'"{begins(text, 60)}"'
            raise ConfigError(
                f"{origin}: {comment!r} would be a comment to YAML; give the value in quotes of "
                f"its own: {quoted!r}"
            )
        # OmegaConf's own reading, so that 1e-3 is a number.
        found: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]))
        return found["x"]
    except (OmegaConfBaseException, yaml.YAMLError, AssertionError, AttributeError,
            ValueError) as exc:  # fmt: skip
        raise ConfigError(f"{origin} cannot be applied: {exc}") from exc


def look_through(text: str, origin: str) -> int:
    """Raise ConfigError for what means to YAML what hardly anybody means by it, and for what no
    reader would come to the end of. Returns where the last value ends.
    """
    repeated, end = 0, 0
    sizes: dict[Any, int] = {}  # of what anchors name, aliases in it counted as what they name
    levels: list[tuple[str | None, int]] = [(None, 0)]
    events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
    for event in events:
        line = f"{origin}, line {event.start_mark.line + 1}" if "\n" in text else origin
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append((event.anchor, 1))
            if len(levels) > _MOST_LEVELS:
                raise ConfigError(f"{line}: nested too deep, more than {_MOST_LEVELS} levels")
            continue
        if isinstance(event, yaml.ScalarEvent):
            if event.implicit[0]:
                _check_number(event.value, line)
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 1)
            repeated += size
            if repeated > _MOST_REPEATED:
                raise ConfigError(f"{line}: aliases stand for more than {_MOST_REPEATED:,} values")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = levels.pop()
        else:
            continue
        end = event.end_mark.index
        if anchor:
            sizes[anchor] = size
        levels[-1] = (levels[-1][0], levels[-1][1] + size)
    return end


def _check_number(text: str, where: str) -> None:
    for form, name in ((_OCTAL, "octal"), (_BASE_60, "base 60")):
        if form.fullmatch(text):
            raise ConfigError(
                f"{where}: {begins(text, 60)!r} is not allowed: YAML takes it for "
                f"{begins(str(yaml.safe_load(text)), 60)} ({name}); write the number itself, or a "
                "text in quotes"
            )
    if _LONG_NUMBER.fullmatch(text):
        raise ConfigError(
            f"{where}: {begins(text, 60)!r} is not allowed: a number of {len(text):,} digits; at "
            f"most {_MOST_DIGITS}, and a text is written in quotes"
        )


def escaped(text: str) -> str:
    """A text as it is written where ``${`` would be a reference."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)

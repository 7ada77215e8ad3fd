"""YAML as people type it: looked at before it is read, for what it would take for another thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    with _told_in_a_line(text, f"{origin}: not valid YAML"):
        look_through(text, origin)
        try:
            loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
        except AssertionError:  # OmegaConf's answer to a bare number
            loaded = None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{origin}: expected a mapping of keys to values")
    return loaded


def value_in(text: str, origin: str) -> Any:
    """One value; a reference stays one. Raises ConfigError."""
    with _told_in_a_line(text, f"{origin} cannot be applied"):
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


@contextmanager
def _told_in_a_line(text: str, begin: str) -> Iterator[None]:
    """What readers of ``text`` say in the block is raised as a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as exc:
        raise ConfigError(f"{begin}: {_in_a_line(exc, text)}") from exc
    except (AssertionError, AttributeError, LookupError, TypeError) as exc:
        raise ConfigError(f"{begin}: a value is none of the kind that its tag (!!) says") from exc


def _in_a_line(error: Exception, text: str) -> str:
    """What a reader of YAML, or OmegaConf, says in several."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).split("\n")[0]
    said = ", ".join(filter(None, (error.context, error.problem)))
    mark = error.problem_mark or error.context_mark
    if mark is None or "\n" not in text:
        return said
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"


@dataclass
class _Level:
    """A list or mapping that is being read.

    Attributes:
        anchor: its name, for aliases.
        keys: a mapping's, so far; None: a list.
        size: values in it, aliases counted as what they stand for.
        key_is_next: in a mapping.
    """

    anchor: str | None
    keys: set[str] | None
    size: int = 1
    key_is_next: bool = True

    def add(self, size: int, text: str | None, line: str) -> None:
        """Count what was read in it, of a scalar with its text."""
        self.size += size
        if self.keys is None:
            return
        if self.key_is_next and text is not None:
            if text in self.keys and text != "<<":  # any number of mappings may be merged
                raise ConfigError(f"{line}: the key {begins(text, 60)!r} is there twice")
            self.keys.add(text)
        self.key_is_next = not self.key_is_next


def look_through(text: str, origin: str) -> int:
    """Raise ConfigError for what means to YAML what hardly anybody means by it, and for what no
    reader would come to the end of. Returns where the last value ends.
    """
    repeated, end = 0, 0
    sizes: dict[Any, int] = {}  # of what anchors name
    levels = [_Level(None, None)]
    events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
    for event in events:
        line = f"{origin}, line {event.start_mark.line + 1}" if "\n" in text else origin
        if isinstance(event, yaml.CollectionStartEvent):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            levels.append(_Level(event.anchor, set() if is_mapping else None))
            if len(levels) > _MOST_LEVELS:
                raise ConfigError(f"{line}: nested too deep, more than {_MOST_LEVELS} levels")
            continue
        scalar: str | None = None
        if isinstance(event, yaml.ScalarEvent):
            if event.implicit[0]:
                _check_number(event.value, line)
            anchor, size, scalar = event.anchor, 1, event.value
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 1)
            repeated += size
            if repeated > _MOST_REPEATED:
                raise ConfigError(f"{line}: aliases stand for more than {_MOST_REPEATED:,} values")
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = levels.pop()
            anchor, size = ended.anchor, ended.size
        else:
            continue
        end = event.end_mark.index
        if anchor:
            sizes[anchor] = size
        levels[-1].add(size, scalar, line)
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

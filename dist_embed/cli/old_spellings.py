"""Commands and options under their earlier names: they go on working, and say the new ones."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.export import KINDS
from dist_embed.errors import UserError
from dist_embed.streams import say

# The output of these came by its place, behind the run.
_WITH_OUTPUT: dict[tuple[str, ...], tuple[str, ...]] = {
    ("embeddings", "plot"): ("plot",),
    ("embeddings", "projector"): ("export", "projector"),
    ("embeddings", "export"): ("export", "embeddings"),
    ("checkpoint", "export"): ("export", "checkpoint"),
}


def in_new_words(words: list[str]) -> tuple[list[str], str | None]:
    """A command line as it is spelled now, and what is to be said of it, if it was not.

    Where the output came by its place it is ``""`` here, for `take_output_by_place`.
    """
    old, rest = tuple(words[:2]), words[2:]
    if old == ("embeddings", "similarity"):
        return ["similarity", *rest], "`embeddings similarity` is `similarity` now"
    new = _WITH_OUTPUT.get(old)
    if words[:1] == ["export"] and words[1:] and words[1] not in (*KINDS, "-h", "--help"):
        old, rest, new = ("export",), words[1:], ("export", "translator")
    if new is None:
        return words, None
    said = f"`{' '.join(old)} RUN OUTPUT` is `{' '.join(new)} RUN --output OUTPUT` now"
    return [*new, "--output", "", *rest], said


def with_missing_output(words: list[str]) -> list[str]:
    """A command line in new words; an output that it lacks is ``""``, for `refuse_no_output`."""
    for new in {*_WITH_OUTPUT.values(), ("export", "translator")}:
        # argparse takes the beginning of an option for it.
        if tuple(words[: len(new)]) == new and not any(word.startswith("--o") for word in words):
            return [*new, "--output", "", *words[len(new) :]]
    return words


def refuse_no_output(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Raises UserError where the output is missing; what came in its place is the hint."""
    if getattr(arguments, "output", None) != "":
        return
    hint = f"; did you mean --output {rest[0]}?" if rest and not rest[0].startswith("-") else ""
    raise UserError(f"the following arguments are required: --output{hint}")


def take_output_by_place(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Take the output out of what the parser left over, where it came by its place.

    Raises UserError where there is none.
    """
    if getattr(arguments, "output", None) != "":
        return
    if not rest or rest[0].startswith("-"):
        raise UserError("--output is missing: where to write")
    arguments.output = rest.pop(0)


class OldOption(argparse.Action):
    """An action for argparse: an option's earlier name; ``dest`` is the new one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Take the value, and say the new name."""
        say(f"dist-embed: {option_string} is --{self.dest} now")
        setattr(namespace, self.dest, values)

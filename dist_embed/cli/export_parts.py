"""``--parts`` and ``--part`` of the commands that export a table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dist_embed.errors import UserError

if TYPE_CHECKING:
    from dist_embed.checkpoint.export import Part


def add_parts(parser: Any, what: str) -> None:
    """Add the options; ``what`` is cut into parts."""
    parser.add_argument(
        "--parts", type=int, metavar="N",
        help=f"cut the {what} into so many files, which processes may write at the same time; "
        "with --part and --step",
    )  # fmt: skip
    parser.add_argument(
        "--part", type=int, metavar="K",
        help="the one to write, from 1 on: FILE.part-0000K-of-0000N",
    )  # fmt: skip


def part_of(arguments: argparse.Namespace) -> Part:
    """The part that is asked for; the whole where none is. Raises UserError."""
    from dist_embed.checkpoint.export import WHOLE, Part

    if arguments.parts is None and arguments.part is None:
        return WHOLE
    if arguments.parts is None or arguments.part is None:
        raise UserError("--parts and --part go together: each call writes one part")
    if arguments.step is None:
        raise UserError(
            "--parts is not allowed without --step: a run that saves meanwhile would give parts "
            "of different checkpoints"
        )
    return Part(arguments.part, arguments.parts)

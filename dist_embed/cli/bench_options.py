"""What the measurements' commands have in common."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any


def at_least(least: int) -> Callable[[str], int]:
    """A type of option for argparse: whole numbers from ``least`` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not allowed: at least {least}")
        return int(text)

    return number


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which `write_figures` reads."""
    parser.add_argument("--json", metavar="FILE", help="write figures, machine and versions there")


def write_figures(
    arguments: argparse.Namespace, figures: dict[str, Any], *, device: str | None = None
) -> None:
    """Write the figures where ``--json`` says, if it does.

    Args:
        arguments: as they were given.
        figures: what was found.
        device: name of what was measured; None: the CPU.
    """
    if not arguments.json:
        return
    import torch

    from dist_embed.bench.report import write_json
    from dist_embed.parallel.device import device_name

    command = shlex.join(["dist-embed", *sys.argv[1:]])
    write_json(arguments.json, command, device or device_name(torch.device("cpu")), figures)

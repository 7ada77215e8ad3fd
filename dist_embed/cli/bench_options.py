"""What the measurements' commands have in common."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any, Literal

from dist_embed.cli.old_spellings import OldOption


def at_least(least: int) -> Callable[[str], int]:
    """A type of option for argparse: whole numbers from ``least`` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not allowed: at least {least}")
        return int(text)

    return number


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``, which `write_figures` reads."""
    parser.add_argument(
        "--output", metavar="FILE", help="write figures, machine and versions there, as JSON"
    )
    parser.add_argument("--json", dest="output", action=OldOption, help=argparse.SUPPRESS)


def add_table_options(parser: argparse.ArgumentParser, *, least: int, more: str = "") -> None:
    """Add ``--words``, from ``least`` on, of which the help says ``more`` too, and ``--widths``."""
    parser.add_argument(
        "--words", type=at_least(least), nargs="*", default=[100_000, 10_000_000], metavar="V",
        help=f"sizes of source, target and output table; default 10⁵ and 10⁷{more}",
    )  # fmt: skip
    parser.add_argument(
        "--widths", type=at_least(1), nargs="+", default=[64, 128], metavar="D",
        help="default 64 and 128",
    )  # fmt: skip


def add_device_options(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``--device`` and ``--workers``, which `device_and_workers` reads."""
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help=help)
    parser.add_argument(
        "--workers", type=at_least(1),
        help="default 2; each has a GPU of its own, where there are any: 1 with a single one",
    )  # fmt: skip


def device_and_workers(arguments: argparse.Namespace) -> tuple[Literal["cpu", "cuda"], int]:
    """Raises UserError where there is no GPU, or not one for each worker."""
    import torch

    from dist_embed.errors import UserError
    from dist_embed.parallel.device import resolve_device

    device = resolve_device(arguments.device, name="--device")
    there = torch.cuda.device_count() if device == "cuda" else 2
    workers = arguments.workers or min(2, there)
    if device == "cuda" and workers > there:
        raise UserError(
            f"--workers: {workers} is not allowed: each needs a GPU, and this machine has {there}"
        )
    return device, workers


def write_figures(
    arguments: argparse.Namespace, figures: dict[str, Any], *, device: str | None = None
) -> None:
    """Write the figures where ``--output`` says, if it does.

    Args:
        arguments: as they were given.
        figures: what was found.
        device: name of what was measured; None: the CPU.
    """
    if not arguments.output:
        return
    import torch

    from dist_embed.bench.report import write_json
    from dist_embed.parallel.device import device_name

    command = shlex.join(["dist-embed", *sys.argv[1:]])
    write_json(arguments.output, command, device or device_name(torch.device("cpu")), figures)

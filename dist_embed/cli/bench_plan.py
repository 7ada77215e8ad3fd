"""``dist-embed bench calibrate`` and ``plan``: a machine's figures, and plans beside runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures
from dist_embed.storage.temporary import temporary_folder


def add_kinds(kinds: Any) -> None:
    """Add this module's measurements."""
    calibrate = kinds.add_parser(
        "calibrate", help="a machine file of this machine, for `dist-embed plan --machine`"
    )
    calibrate.add_argument(
        "-o", "--output", metavar="FILE", default="machine.yaml", help="default machine.yaml"
    )
    _add_options(calibrate)
    calibrate.set_defaults(call=_calibrate)

    check = kinds.add_parser("plan", help="calibrates, then sets plans beside what runs take")
    check.add_argument("--machine-file", metavar="FILE", help="write the machine file there")
    check.add_argument("--rounds", type=at_least(1), default=2, help="of all runs; default 2")
    _add_options(check)
    add_output_option(check)
    check.set_defaults(call=_check)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=at_least(2), nargs="+", default=[2, 4], metavar="W",
        help="beside 1; default 2 and 4",
    )  # fmt: skip
    parser.add_argument(
        "--store", metavar="URI", help="of checkpoints; default: a folder for temporary files"
    )


def _calibrate(arguments: argparse.Namespace) -> None:
    from dist_embed.storage.trials import check_new_file

    check_new_file(arguments.output, "--output")  # a machine file is a regular one
    with temporary_folder("dist_embed-bench-") as folder:
        _write_machine(_measured(arguments, folder), arguments.output)


def _check(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.plan_check import (
        compare,
        comparison_table,
        figures,
        verdict,
    )
    from dist_embed.cli.table import print_table
    from dist_embed.storage.trials import check_new_file

    if arguments.machine_file:
        check_new_file(arguments.machine_file, "--machine-file")
    with temporary_folder("dist_embed-bench-") as folder:
        machine = _measured(arguments, folder)
        if arguments.machine_file:
            _write_machine(machine, arguments.machine_file)
        compared = compare(machine, folder, arguments.rounds, arguments.workers, print)
    print_table(*comparison_table(compared))
    print("\n".join(verdict(compared)))
    write_figures(arguments, figures(machine, compared))


def _measured(arguments: argparse.Namespace, folder: str) -> Any:
    from dist_embed.bench.calibrate import calibrate

    return calibrate(folder, arguments.store or folder, sorted(set(arguments.workers)), print)


def _write_machine(machine: Any, file: str) -> None:
    from datetime import date
    from pathlib import PurePosixPath

    from dist_embed.bench.calibrate import machine_yaml
    from dist_embed.storage.uri import write_given_text

    said = f"{shlex.join(['dist-embed', *sys.argv[1:]])}, {date.today()}"
    write_given_text(file, machine_yaml(machine, PurePosixPath(file).stem, said))
    print(f"→ {file}")

"""``dist-embed plan``: what a run will take, before it is started."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config
from dist_embed.errors import UserError


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "memory, traffic and time of a run, before it is started"
    parser = commands.add_parser("plan", help=text, description=text)
    add_config_arguments(parser)
    parser.add_argument(
        "--workers", metavar="N,N…", help="numbers of workers; default cluster.num_workers"
    )
    parser.add_argument(
        "--machine", metavar="NAME|FILE",
        help="a machine file, or one of those that are there (docs/planning.md); default 8xh100 "
        "with cluster.device=cuda, else cpu",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="write the plans there, as JSON")
    parser.add_argument("--json", dest="output", metavar="FILE", help=argparse.SUPPRESS)
    parser.set_defaults(call=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.planning import load_machine, plan
    from dist_embed.planning.machine import usual_machine
    from dist_embed.planning.page import (
        memory_table,
        overview,
        remarks,
        time_table,
        traffic_table,
        verdict_lines,
    )
    from dist_embed.storage import uri as storage
    from dist_embed.storage.trials import check_new_file

    config = load_config(arguments.config, arguments.overrides)
    workers = _numbers(arguments.workers) or [config.cluster.max_workers]
    machine = load_machine(arguments.machine or usual_machine(config))
    if arguments.output:
        check_new_file(arguments.output, "--output")
    plans = [plan(config, number, machine) for number in workers]
    print_table(*overview(plans))
    last = plans[-1]
    for table in (memory_table, time_table, traffic_table):
        print(f"\nWith {last.workers:,} workers:\n")
        print_table(*table(last))
    print()
    for one in plans:
        print("\n".join(verdict_lines(one)))
    print("\n".join(remarks(last)))
    if arguments.output:
        content = {"plans": [one.as_dict() for one in plans], "machine": machine.model_dump()}
        storage.write_given_text(arguments.output, json.dumps(content, indent=1) + "\n")


def _numbers(text: str | None) -> list[int]:
    """Of ``8,64,512``. Raises UserError."""
    if text is None:
        return []
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise UserError(f"--workers: {text!r} is not allowed: numbers from 1 on, as 8,64,512")
    return [int(number) for number in numbers]

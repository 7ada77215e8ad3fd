"""``dist-embed bench``: measurements that users repeat on their own machines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from dist_embed.cli import (
    bench_cluster,
    bench_files,
    bench_lookup,
    bench_one_hot,
    bench_output,
    bench_plan,
    bench_search,
    bench_step,
    bench_training,
    bench_words,
)
from dist_embed.cli.trained_run import check_output


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = commands.add_parser("bench", help="measure speed on this machine")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    bench_training.add_kinds(kinds)
    bench_step.add_kinds(kinds)
    bench_files.add_kinds(kinds)
    bench_lookup.add_kinds(kinds)
    bench_output.add_kinds(kinds)
    bench_one_hot.add_kinds(kinds)
    bench_search.add_kinds(kinds)
    bench_words.add_kinds(kinds)
    bench_cluster.add_kinds(kinds)
    bench_plan.add_kinds(kinds)
    for kind in kinds.choices.values():
        kind.set_defaults(call=partial(_measure, kind.get_default("call")))


def _measure(call: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    check_output(arguments.output)  # before what may take hours
    call(arguments)

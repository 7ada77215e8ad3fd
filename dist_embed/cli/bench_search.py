"""``dist-embed bench search``."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures


def add_kinds(kinds: Any) -> None:
    """Add this module's measurement."""
    parser = kinds.add_parser(
        "search", help="what a worker receives and does to merge all workers' best words"
    )
    parser.add_argument(
        "--workers", type=at_least(1), nargs="+", default=[2, 8, 64, 512],
        help="whose lists are merged; default 2 8 64 512",
    )  # fmt: skip
    parser.add_argument(
        "--hypotheses", type=at_least(1), default=320, help="of one worker; default 320"
    )
    parser.add_argument("--beam", type=at_least(1), default=5, help="default 5")
    parser.add_argument(
        "--rows", type=at_least(1), default=10**9, metavar="V", help="of all; default 10⁹"
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=5, help="merges that are timed; default 5"
    )
    add_output_option(parser)
    parser.set_defaults(call=_search)


def _search(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.search import measure_merging
    from dist_embed.cli.table import print_table

    found = measure_merging(
        arguments.workers, arguments.hypotheses, arguments.beam, arguments.rows, arguments.repeats
    )
    print(
        f"one step of the beam: {arguments.hypotheses:,} hypotheses a worker, beam "
        f"{arguments.beam}, {arguments.rows:,} words; median of {arguments.repeats} merges"
    )
    print_table(
        ["workers", "MiB received", "ms to merge"],
        [
            [f"{one['workers']:,}", f"{one['bytes'] / 2**20:,.2f}", f"{one['seconds'] * 1e3:,.2f}"]
            for one in found
        ],
    )
    write_figures(arguments, {"merging": found})

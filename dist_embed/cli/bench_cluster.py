"""``dist-embed bench cluster``."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures
from dist_embed.errors import RunFailed, UserError

STAGES = ("submit", "kill", "node", "overhead", "elastic", "prepare", "loader")


def add_kinds(kinds: Any) -> None:
    """Add this module's measurement."""
    parser = kinds.add_parser(
        "cluster", help="what a cluster costs a run: starts, losses, Ray's share of a step, data"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
        help=f"of {', '.join(STAGES)}; default all",
    )  # fmt: skip
    parser.add_argument(
        "--store", metavar="URI",
        help="of `loader`: a folder or URL below which its data are written, and removed",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=at_least(1), default=3, help="of `overhead`, launchers in turns; default 3"
    )
    parser.add_argument(
        "--steps", type=at_least(20), default=100,
        help="of a round, and of the training beside `loader`; 20 or more; default 100",
    )  # fmt: skip
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the losses of `elastic` there; .svg or .png"
    )
    add_output_option(parser)
    parser.set_defaults(call=_cluster)


def _cluster(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.cluster import Sizes, cluster_table, draw_elastic, measure_cluster
    from dist_embed.cli.table import print_table
    from dist_embed.observe.plot import check_plot_path
    from dist_embed.storage.uri import absolute

    if arguments.plot:
        if "elastic" not in arguments.stages:
            raise UserError("--plot: not allowed without `elastic` among --stages")
        check_plot_path(arguments.plot)
    store = arguments.store and absolute(arguments.store)
    figures = measure_cluster(
        arguments.stages, Sizes(arguments.rounds, arguments.steps, store, print)
    )
    print_table(*cluster_table(figures))
    write_figures(arguments, figures)
    if arguments.plot:
        draw_elastic(figures, arguments.plot)
    if figures["failed"]:
        raise RunFailed("\n".join(f"{name}: {why}" for name, why in figures["failed"].items()))

"""``dist-embed bench one-hot``."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures

SIZES = [1000, 10_000, 100_000, 1_000_000, 4_000_000, 8_000_000]


def add_kinds(kinds: Any) -> None:
    """Add this module's measurement."""
    parser = kinds.add_parser(
        "one-hot", help="a first layer as one-hot vectors times a matrix, and as a lookup of rows"
    )
    parser.add_argument(
        "--words", type=at_least(1), nargs="+", default=SIZES, metavar="V",
        help="sizes of the vocabulary; default 10³ to 8 · 10⁶",
    )  # fmt: skip
    parser.add_argument("--width", type=at_least(1), default=128, help="default 128")
    parser.add_argument(
        "--tokens", type=at_least(1), default=1024, help="words of a batch; default 1024"
    )
    parser.add_argument("--rounds", type=at_least(1), default=3, help="default 3")
    parser.add_argument("--plot", metavar="FILE", help="draw the times there; .svg or .png")
    add_output_option(parser)
    parser.set_defaults(call=_one_hot)


def _one_hot(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from dist_embed.bench.one_hot import draw_one_hot, measure_one_hot, one_hot_table
    from dist_embed.cli.table import print_table
    from dist_embed.observe.plot import check_plot_path

    if arguments.plot:
        check_plot_path(arguments.plot)
    figures = measure_one_hot(
        arguments.words, arguments.width, arguments.tokens, arguments.rounds, print
    )
    print(
        f"a batch of {arguments.tokens:,} words drawn by Zipf's law, vectors of width "
        f"{arguments.width}, float32; forward and backward, median of {arguments.rounds} rounds; "
        "memory: the peak with matrix and gradient"
    )
    print_table(*one_hot_table(figures))
    write_figures(arguments, {"sizes": [asdict(one) for one in figures]})
    if arguments.plot:
        draw_one_hot(figures, arguments.plot)

"""``dist-embed bench lookup``."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures
from dist_embed.errors import UserError


def add_kinds(kinds: Any) -> None:
    """Add this module's measurement."""
    parser = kinds.add_parser(
        "lookup", help="a step's lookup and update of a table, beside FBGEMM's kernel and a copy"
    )
    parser.add_argument(
        "--device", choices=["auto", "cuda", "cpu"], default="auto", help="default auto"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--rows", type=at_least(1), default=1_000_000, metavar="V", help="of the table; default 10⁶"
    )
    size.add_argument(
        "--fill", type=_share, metavar="SHARE",
        help="instead: as many rows as take this share of the device's free memory, with the "
        "optimizer's state, wherever they lie; on the CPU of this machine's",
    )  # fmt: skip
    parser.add_argument(
        "--ids", type=at_least(1), default=100_000, metavar="N", help="a step; default 100,000"
    )
    parser.add_argument(
        "--width", type=at_least(4), default=128, metavar="D", help="a multiple of 4; default 128"
    )
    parser.add_argument(
        "--draw", choices=["distinct", "zipf", "power-law"], default="distinct",
        help="ids that are all different, by Zipf's law, or as in FBGEMM's public case, with "
        "exponent 1.05 in each tenth of the rows; default distinct",
    )  # fmt: skip
    parser.add_argument(
        "--optimizer", nargs="+", choices=["sgd", "adagrad", "rowwise_adagrad", "adam"],
        default=["rowwise_adagrad"], help="adam: on CUDA alone; default rowwise_adagrad",
    )  # fmt: skip
    parser.add_argument(
        "--weights", nargs="+", choices=["fp32", "fp16"], default=["fp32"],
        help="type of the rows; fp16: on CUDA alone; default fp32",
    )  # fmt: skip
    parser.add_argument(
        "--memory", nargs="+", choices=["device", "uvm", "uvm_caching"], default=["device"],
        help="where rows lie; uvm and uvm_caching: on CUDA alone; default device",
    )  # fmt: skip
    parser.add_argument("--repeats", type=at_least(1), default=20, help="steps; default 20")
    add_output_option(parser)
    parser.set_defaults(call=_lookup)


def _share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: above 0 and below 1")
    return float(text)


def _lookup(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.lookup import (
        lookup_figures,
        lookup_lines,
        lookup_report,
        lookup_table,
    )
    from dist_embed.bench.lookup_cases import Work
    from dist_embed.cli.table import print_table

    if arguments.width % 4:
        raise UserError(f"--width: {arguments.width} is not allowed: a multiple of 4")
    work = Work(arguments.ids, arguments.width, arguments.draw, arguments.repeats)
    report = lookup_report(
        arguments.device, work, num_rows=arguments.rows, fill=arguments.fill,
        memories=arguments.memory, weights=arguments.weights, optimizers=arguments.optimizer,
        say=print,
    )  # fmt: skip
    for line in lookup_lines(report):
        print(line)
    print_table(*lookup_table(report))
    write_figures(arguments, lookup_figures(report), device=report.device)

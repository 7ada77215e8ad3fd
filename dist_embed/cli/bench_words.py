"""``dist-embed bench words``: memory of whole runs by the size of the vocabulary."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from dist_embed.cli.bench_options import (
    add_output_option,
    add_table_options,
    at_least,
    write_figures,
)
from dist_embed.errors import UserError


def add_kinds(kinds: Any) -> None:
    """Add this module's measurements to ``dist-embed bench``."""
    parser = kinds.add_parser(
        "words", help="memory of a worker of whole runs by the size of the vocabulary"
    )
    add_table_options(parser, least=10_000)
    parser.add_argument(
        "--tokens", type=at_least(32), default=2048, help="per worker; default 2048"
    )
    parser.add_argument("--samples", type=at_least(1), default=8192, help="default 8192")
    parser.add_argument("--workers", type=at_least(1), default=2, help="default 2")
    parser.add_argument(
        "--largest", action="store_true",
        help="also find the most words that train here at the first width, words included",
    )  # fmt: skip
    add_output_option(parser)
    parser.set_defaults(call=_words)


def _words(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.run_memory import STEPS, largest_run, measure_run, run_case
    from dist_embed.bench.vocabulary_cases import SENTENCE_TOKENS
    from dist_embed.cli.table import print_table
    from dist_embed.embedding.memory import GIB
    from dist_embed.parallel.device import device_name

    if arguments.tokens % SENTENCE_TOKENS:
        raise UserError(
            f"--tokens: {arguments.tokens} is not allowed: sentences have {SENTENCE_TOKENS} "
            "tokens, so a multiple of that"
        )
    workers = arguments.workers
    rows, figures = [], []
    for width in arguments.widths:
        for num_words in arguments.words:
            case = run_case(num_words, width, arguments.tokens, arguments.samples)
            found = measure_run(case, num_workers=workers, say=print)
            share = case.table_bytes / workers
            peaks = [found.started, found.resumed] if found else []
            shown = [f"{peak / GIB:.2f}" for peak in peaks] or ["failed", "failed"]
            rows.append([f"{num_words:,}", str(width), f"{share / GIB:.2f}", *shown])
            figures.append({"case": asdict(case), "peaks": found and asdict(found)})
    if rows:
        print(
            f"\nPeak resident memory of worker 0 of {workers}, GiB, in `train` of {STEPS} steps "
            "with a checkpoint:\n"
        )
        print_table(["words", "width", "tables / W", "started", "resumed"], rows)
    largest = None
    if arguments.largest:
        case = run_case(0, arguments.widths[0], arguments.tokens, arguments.samples)
        largest = largest_run(case, num_workers=workers, say=print)
        print(f"\nLargest vocabulary: {largest[0]:,} words train, {largest[1]:,} do not")
    name = device_name(torch.device("cpu"))
    write_figures(arguments, {"runs": figures, "largest": largest}, device=name)

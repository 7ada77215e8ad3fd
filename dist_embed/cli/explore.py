"""``dist-embed neighbors``, ``analogy``, ``similarity`` and ``plot``: look at a run's vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dist_embed.arguments import typed
from dist_embed.cli.run_table import (
    add_table_options,
    add_words_options,
    chosen_words,
    described,
    open_table,
)


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    neighbors = commands.add_parser("neighbors", help="the nearest words of given ones, by cosine")
    add_table_options(neighbors)
    neighbors.add_argument("words", nargs="+", metavar="WORD")
    _add_count(neighbors)
    neighbors.set_defaults(call=_neighbors)
    analogy = commands.add_parser("analogy", help="A is to B as C is to which word?")
    add_table_options(analogy)
    for name in ("a", "b", "c"):
        analogy.add_argument(name, metavar=name.upper())
    _add_count(analogy)
    analogy.set_defaults(call=_analogy)
    similarity = commands.add_parser(
        "similarity", help="rank correlation with people's judgement of word pairs"
    )
    add_table_options(similarity)
    similarity.add_argument("file", metavar="PAIRS", help="lines of two words and a number")
    similarity.set_defaults(call=_similarity)
    plot = commands.add_parser("plot", help="a map of words: .png, .svg or an interactive .html")
    add_table_options(plot)
    plot.add_argument("--output", required=True, metavar="FILE", help="by its ending")
    add_words_options(plot)
    plot.add_argument("--method", choices=("pca", "tsne"), default="tsne", help="default tsne")
    plot.set_defaults(call=_plot)


def _add_count(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=10, help="words shown; default 10")


def _neighbors(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.explore.nearest import neighbors
    from dist_embed.observe.events import printable

    table = open_table(arguments)
    found = neighbors(table, [typed(word) for word in arguments.words], arguments.count)
    print(described(table))
    for word, near in found.items():
        print(f"\n{printable(word)}")
        print_table(["word", "cosine"], [[other, f"{cosine:.4f}"] for other, cosine in near])


def _analogy(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.explore.nearest import analogy
    from dist_embed.observe.events import printable

    table = open_table(arguments)
    a, b, c = map(typed, (arguments.a, arguments.b, arguments.c))
    found = analogy(table, a, b, c, arguments.count)
    print(described(table))
    a, b, c = map(printable, (a, b, c))
    print(f"\n{a} is to {b} as {c} is to")
    print_table(["word", "cosine"], [[word, f"{cosine:.4f}"] for word, cosine in found])


def _similarity(arguments: argparse.Namespace) -> None:
    from dist_embed.explore.similarity import similarity_agreement

    table = open_table(arguments)
    found = similarity_agreement(table, arguments.file)
    print(described(table))
    print(
        f"Spearman's rank correlation {found.spearman:.4f} over {found.pairs:,} pairs; "
        f"{found.unknown:,} pairs have a word that the vocabulary lacks"
        + (
            f", {found.untrained:,} one that never occurs {table.on_sides}"
            if found.untrained
            else ""
        )
    )


def _plot(arguments: argparse.Namespace) -> None:
    from dist_embed.explore.flat_map import draw_map, flat_map
    from dist_embed.explore.map_page import map_page
    from dist_embed.observe.fonts import without_letters
    from dist_embed.observe.plot import ENDINGS, check_plot_path
    from dist_embed.storage import uri as storage

    check_plot_path(arguments.output, (*ENDINGS, ".html"))
    table = open_table(arguments)
    ids, words = chosen_words(table, arguments)
    vectors = table.rows_of(ids)
    places = flat_map(vectors, arguments.method, seed=1)
    if arguments.output.endswith(".html"):
        page = map_page(places, words, vectors, described(table))
        storage.write_given_text(arguments.output, page)
    else:
        draw_map(arguments.output, places, words, described(table))
    print(f"{described(table)}: {len(words):,} words by {arguments.method} → {arguments.output}")
    if not arguments.output.endswith(".html") and (boxes := without_letters(words)):
        shown = Path(arguments.output).with_suffix(".html")
        print(
            f"{len(boxes):,} of them, {boxes[0]!r} for one, have letters that no font of this "
            f"machine has, and may be boxes in the picture; a page shows them: --output {shown}"
        )

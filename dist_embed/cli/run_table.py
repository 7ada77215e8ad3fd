"""What the commands that look at a run's vectors, or export them, have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dist_embed.errors import UserError
from dist_embed.streams import say

if TYPE_CHECKING:
    from dist_embed.explore.table import RunTable

FIRST_WORDS = 1000


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Add RUN and the options that `open_table` reads."""
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument(
        "--role", choices=("source", "target", "output"), default="source",
        help="whose vectors: the encoder's input (default), the decoder's, or the output layer's",
    )  # fmt: skip
    parser.add_argument("--step", type=int, help="of this checkpoint; default: lowest loss")
    parser.add_argument(
        "--untrained", action="store_true",
        help="words too that never occur in training on a side that uses these vectors",
    )  # fmt: skip


def add_words_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `chosen_words` reads."""
    parser.add_argument(
        "--words", metavar="FILE", help="these words, one a line; default: the most frequent ones"
    )
    parser.add_argument(
        "--count", type=int, default=FIRST_WORDS,
        help=f"how many of the most frequent words; default {FIRST_WORDS}",
    )  # fmt: skip


def open_table(arguments: argparse.Namespace) -> RunTable:
    """The table that is asked for. Raises UserError."""
    from dist_embed.explore.table import RunTable

    count = getattr(arguments, "count", 1)
    if count < 1:
        raise UserError(f"--count: {count} is not allowed: at least 1")
    return RunTable(arguments.run, arguments.role, arguments.step, untrained=arguments.untrained)


def chosen_words(table: RunTable, arguments: argparse.Namespace) -> tuple[list[int], list[str]]:
    """Ids and words that are asked for, the most frequent of the table's side first."""
    import numpy as np

    from dist_embed.data.text.lines import read_lines
    from dist_embed.explore.flat_map import LEAST_WORDS

    if arguments.words:
        words = {word for line in read_lines(arguments.words) if (word := line.strip())}
        found = [table.find(word) for word in words]
        if unknown := found.count(None):
            say(f"left out: {unknown:,} words of {arguments.words} that the vocabulary lacks")
        asked = {i for i in found if i is not None}
        ids = table.by_frequency(np.array(sorted(asked), dtype=np.int64)).tolist()
        if left_out := len(asked) - len(ids):
            say(
                f"left out: {left_out:,} words of {arguments.words} that never occur "
                f"{table.on_sides}; --untrained shows them too"
            )
    else:
        ids = table.frequent_ids(arguments.count)
    if len(ids) < LEAST_WORDS:
        raise UserError(f"{len(ids)} words are too few for a map: at least {LEAST_WORDS}")
    return ids, [table.word(i) for i in ids]


def described(table: RunTable) -> str:
    """Which vectors of which run these are."""
    return f"{table.run_uri}, {table.role} vectors of step {table.step}"

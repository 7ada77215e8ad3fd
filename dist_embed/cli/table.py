"""Tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

import tabulate

from dist_embed.observe.events import printable

tabulate.MIN_PADDING = 0  # else columns are wider where their header is


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in Markdown, as it stands in docs/benchmarks; cells are made `printable`."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    print(
        tabulate.tabulate(
            cells[1:], cells[0], tablefmt="github", disable_numparse=True, preserve_whitespace=True
        )
    )

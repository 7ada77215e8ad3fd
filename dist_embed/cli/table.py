"""Tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

import tabulate

tabulate.MIN_PADDING = 0  # else columns are wider where their header is


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in Markdown, as it stands in docs/benchmarks."""
    print(
        tabulate.tabulate(
            rows, header, tablefmt="github", disable_numparse=True, preserve_whitespace=True
        )
    )

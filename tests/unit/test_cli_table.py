from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

from dist_embed.cli.table import print_table
from dist_embed.observe.events import printable

# What a number may be taken for, blanks at the ends, a header that is the widest, wide letters.
CELL = st.sampled_from(
    ["", "a", "007", "1e5", "1,000", "nan", "None", "True", " b ", "東京", "a|b", "\u00a0", "ß" * 9]
)
TABLES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(CELL, min_size=columns, max_size=columns), min_size=1)
)


def printed(header: list[str], rows: list[list[str]]) -> str:
    out = StringIO()
    with redirect_stdout(out):
        print_table(header, rows)
    return out.getvalue()


@settings(max_examples=200, deadline=None)
@given(TABLES)
def test_cells_stand_as_they_are_in_columns_as_wide_as_the_widest(table: list[list[str]]) -> None:
    # Of a terminal: a Chinese letter takes two columns.
    widths = [max(map(wcswidth, column)) for column in zip(*table, strict=True)]

    def line(cells: list[str]) -> str:
        padded = (c + " " * (w - wcswidth(c)) for c, w in zip(cells, widths, strict=True))
        return "".join(f"| {cell} " for cell in padded) + "|\n"

    header, *rows = table
    below = "".join(f"|{'-' * (width + 2)}" for width in widths) + "|\n"
    assert printed(header, rows) == line(header) + below + "".join(map(line, rows))


def test_control_characters_are_shown_and_do_nothing() -> None:
    cells = ["\x1b[2Jhe", "a\tb", "c\r\n", "\x9b\x7f\u2028", "東\x0b京", "plain \\x1b"]
    shown = [r"\x1b[2Jhe", r"a\tb", r"c\r\n", r"\x9b\x7f\u2028", r"東\x0b京", "plain \\x1b"]
    assert list(map(printable, cells)) == shown
    rows = [[cell, "1"] for cell in cells]
    assert printed(["a\nb", "n"], rows) == printed([r"a\nb", "n"], [[cell, "1"] for cell in shown])
    assert len({wcswidth(line) for line in printed(["a\nb", "n"], rows).splitlines()}) == 1


@pytest.mark.parametrize("rows", [[], [["1", "2"]]])
def test_a_table_may_have_no_rows(rows: list[list[str]]) -> None:
    assert printed(["words", "x"], rows).splitlines()[:2] == ["| words | x |", "|-------|---|"]

"""The tables that a command has printed."""

from __future__ import annotations


def cells(text: str) -> list[list[str]]:
    """Of the printed tables, without the lines below their heads."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]

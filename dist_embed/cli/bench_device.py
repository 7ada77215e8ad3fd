"""``dist-embed bench`` of what one device does alone."""

from __future__ import annotations

from typing import Any


def add_kinds(kinds: Any) -> None:
    """Add this module's measurements."""

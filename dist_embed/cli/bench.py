"""``dist-embed bench``: measurements that users repeat on their own machines."""

from __future__ import annotations

from typing import Any


def add_commands(commands: Any) -> None:
    """Add this module's commands."""

"""What is aimed at on an H100, beside what ``launch/gpu.sh`` has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def target_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each target."""
    return []

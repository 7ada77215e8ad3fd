"""The axes of plots, as they were drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from dist_embed.observe.plot import plot_into


def drawn_axes(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Any]:
    """A list that gets those of every plot that the module draws."""
    axes: list[Any] = []

    @contextmanager
    def keeping(path: str) -> Iterator[Any]:
        with plot_into(path) as one:
            yield one
            axes.append(one)

    monkeypatch.setattr(module, "plot_into", keeping)
    return axes

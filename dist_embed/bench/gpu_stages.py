"""The stages of ``launch/gpu.sh``: their commands, on a GPU and, at small sizes, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Work:
    """What a stage's commands need to know."""

    device: Literal["cuda", "cpu"]
    folder: Path
    multi30k: str | None

    @property
    def figures(self) -> Path:
        """Folder of the figures that commands write: one JSON file each."""
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def by_device(self, cuda: str, cpu: str) -> list[str]:
        """Arguments, by the device."""
        return (cuda if self.device == "cuda" else cpu).split()


Commands = Callable[[Work], list[list[str]]]


@dataclass(frozen=True)
class Stage:
    """Commands that show one thing, within a number of seconds.

    needed: nothing else can be shown where this one fails. counts: the last line that its commands
    print counts what they did.
    """

    name: str
    about: str
    seconds: int
    commands: Commands
    needed: bool = False
    counts: bool = False


def _dist_embed(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dist_embed.cli.main", *arguments]


STAGES: tuple[Stage, ...] = ()

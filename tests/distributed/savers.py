"""A saver that keeps all it saves."""

from __future__ import annotations

from dist_embed.checkpoint.catalogue import (
    open_checkpoints,
)
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.parallel.group import Group


def saver_of(
    group: Group, uri: str, lines: list[str], *, asynchronous: bool = True, max_failures: int = 9
) -> Saver:
    store = open_checkpoints(uri)
    settings = CheckpointSection(
        saving="behind" if asynchronous else "waiting", max_failures=max_failures,
        timeout_seconds=30.0, drain_seconds=10.0, keep_last=100, keep_best=0,
    )  # fmt: skip
    return Saver(store, group, settings, Pruner(store, settings), report=lines.append)

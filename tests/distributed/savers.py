"""A saver that keeps all it saves."""

from __future__ import annotations

from dist_embed.checkpoint.catalogue import (
    open_checkpoints,
)
from dist_embed.checkpoint.retention import Pruner, Retention
from dist_embed.checkpoint.saver import Saver, SaverSettings
from dist_embed.parallel.group import Group

KEEP_ALL = Retention(keep_last=100, keep_best=0, keep_every=0, leftover_hours=24.0)


def saver_of(
    group: Group, uri: str, lines: list[str], *, asynchronous: bool = True, max_failures: int = 9
) -> Saver:
    store = open_checkpoints(uri)
    settings = SaverSettings(
        asynchronous=asynchronous, max_failures=max_failures, timeout_seconds=30.0,
        drain_seconds=10.0,
    )  # fmt: skip
    return Saver(store, group, settings, Pruner(store, KEEP_ALL), report=lines.append)

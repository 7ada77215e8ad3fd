"""Checkpoints of a single worker, as tests write them: without a saver, its thread and its copy;
and which of them stay.
"""

from __future__ import annotations

from collections.abc import Collection

from dist_embed.checkpoint.chunk import CHUNK_BYTES, Rows
from dist_embed.checkpoint.manifest import Manifest, ManifestName
from dist_embed.checkpoint.settings import CheckpointSection, Saving
from dist_embed.checkpoint.write import Description, manifest_of, new_attempt, publish, write_rows
from dist_embed.storage.objects import ObjectStore


def keeping(
    keep_last: int, keep_best: int, keep_every: int, leftover_hours: float
) -> CheckpointSection:
    """Settings of which checkpoints stay, also such that only `dist-embed checkpoint prune` can be
    given, or nobody: none of the newest, a negative age.
    """
    kept = {"keep_last": keep_last, "keep_best": keep_best, "keep_every": keep_every}
    return CheckpointSection().model_copy(update=kept | {"leftover_hours": leftover_hours})


def saving(
    how: Saving, max_failures: int, timeout_seconds: float, drain_seconds: float
) -> CheckpointSection:
    """Settings of how a run saves."""
    return CheckpointSection(
        saving=how,
        max_failures=max_failures,
        timeout_seconds=timeout_seconds,
        drain_seconds=drain_seconds,
    )


def write_checkpoint(
    store: ObjectStore,
    description: Description,
    rows: list[Rows],
    *,
    damaged: Collection[ManifestName] = (),
    chunk_bytes: int = CHUNK_BYTES,
) -> Manifest:
    """Write and publish one."""
    attempt = new_attempt(description.step)
    indexes = write_rows(store, attempt, rows, 0, chunk_bytes=chunk_bytes)
    manifest = manifest_of(description, attempt, 1, indexes)
    publish(store, manifest, damaged=damaged)
    return manifest

"""Checkpoints of a single worker, as tests write them: without a saver, its thread and its copy."""

from __future__ import annotations

from collections.abc import Collection

from dist_embed.checkpoint.chunk import CHUNK_BYTES, Rows
from dist_embed.checkpoint.manifest import Manifest, ManifestName
from dist_embed.checkpoint.write import Description, manifest_of, new_attempt, publish, write_rows
from dist_embed.storage.objects import ObjectStore


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

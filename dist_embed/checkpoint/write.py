"""Writing one checkpoint: every worker its chunks and index, then worker 0 the manifest."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import TypeAdapter

from dist_embed.checkpoint.catalogue import manifest_names
from dist_embed.checkpoint.chunk import BLOCK_BYTES, CHUNK_BYTES, ChunkWriter, Rows, cut_into_chunks
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointConflict,
    CheckpointError,
    ChunkInfo,
    Index,
    IndexInfo,
    Manifest,
    ManifestName,
    TensorInfo,
    manifest_bytes,
)
from dist_embed.parallel.collectives import gather_texts, same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore

# Two, so that one chunk is hashed while another is on its way; more would only take memory.
WRITE_THREADS = 2
# An index of 64 GiB of float32 rows stays near 4 MiB.
CHUNKS_PER_INDEX = 1024
_INDEXES = TypeAdapter(list[IndexInfo])


@dataclass(frozen=True)
class Description:
    """What the manifest says of a state, apart from where its bytes lie."""

    step: int
    fingerprint: str
    tensors: dict[str, TensorInfo]
    row_multipliers: dict[str, int]
    scalars_json: str


def write_checkpoint(
    store: ObjectStore,
    description: Description,
    rows: list[Rows],
    group: Group,
    *,
    superseded: frozenset[ManifestName] = frozenset(),
    chunk_bytes: int = CHUNK_BYTES,
) -> Manifest:
    """Write and publish one checkpoint.

    Args:
        store: the run's ``checkpoints`` folder.
        description: the same on every worker.
        rows: what this worker writes.
        group: this worker and its peers.
        superseded: manifests known to be damaged, which this one may follow.
        chunk_bytes: largest chunk.

    Raises:
        Exception: on every worker when any of them failed. Nothing is published then; what was
            written lies under a name that nothing refers to.

    Collective.
    """
    attempt = same_text_from_first(_attempt_name(description.step), group)
    with all_or_none(group):
        written = _write_rows(store, attempt, rows, group.rank, chunk_bytes)
    gathered = gather_texts(_INDEXES.dump_json(written).decode(), group)
    indexes = [index for text in gathered for index in _INDEXES.validate_json(text)]
    manifest = Manifest.model_validate(
        {
            "step": description.step,
            "attempt": attempt,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "num_workers": group.num_workers,
            "fingerprint": description.fingerprint,
            "block_bytes": BLOCK_BYTES,
            "tensors": description.tensors,
            "row_multipliers": description.row_multipliers,
            "indexes": indexes,
            "scalars": json.loads(description.scalars_json),
        }
    )
    with all_or_none(group):
        if group.is_first:
            _check_all_there(store, manifest)
            _publish(store, manifest, superseded)
    return manifest


def _attempt_name(step: int) -> str:
    """Unique; says when it began, for whoever cleans up."""
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"step-{step:09d}-{began}-{secrets.token_hex(4)}"


def _write_rows(
    store: ObjectStore, attempt: str, rows: list[Rows], rank: int, chunk_bytes: int
) -> list[IndexInfo]:
    """Write this worker's chunks and their indexes."""

    def write(number: int, chunk: list[Rows]) -> ChunkInfo:
        name = f"chunk-{rank:05d}-{number:06d}.safetensors"
        writer = ChunkWriter(name, chunk)
        store.put(f"{OBJECTS}/{attempt}/{name}", writer.blocks())
        return writer.info()

    with ThreadPoolExecutor(WRITE_THREADS, "checkpoint-write") as threads:
        pending = [
            threads.submit(write, number, chunk)
            for number, chunk in enumerate(cut_into_chunks(rows, chunk_bytes))
        ]
        try:
            chunks = [future.result() for future in pending]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    indexes = []
    for first in range(0, len(chunks), CHUNKS_PER_INDEX):
        part = chunks[first : first + CHUNKS_PER_INDEX]
        index = Index(chunks=part)
        data = index.model_dump_json().encode()
        name = f"index-{rank:05d}-{first // CHUNKS_PER_INDEX:04d}.json"
        store.put(f"{OBJECTS}/{attempt}/{name}", [data])
        indexes.append(
            IndexInfo(
                name=name,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                num_chunks=len(part),
                chunk_bytes=index.chunk_bytes,
                rows=index.rows(),
            )
        )
    return indexes


def _check_all_there(store: ObjectStore, manifest: Manifest) -> None:
    """Raises CheckpointError where others have written to a place that this worker cannot see."""
    folder = f"{OBJECTS}/{manifest.attempt}"
    there = {entry.name: entry.size_bytes for entry in store.entries(folder)}
    for index in manifest.indexes:
        if there.get(f"{folder}/{index.name}") != index.size_bytes:
            raise CheckpointError(
                f"{store.uri}: worker 0 does not find what another worker has written there "
                f"({folder}/{index.name}). Is it a folder of each machine's own? All workers need "
                "the same one: shared, or a URL"
            )


def _publish(store: ObjectStore, manifest: Manifest, superseded: frozenset[ManifestName]) -> None:
    there = [name for name in manifest_names(store) if name.step == manifest.step]
    unknown = [name for name in there if name not in superseded]
    generation = max((name.generation for name in there), default=-1) + 1
    try:
        if unknown:
            raise FileExistsError
        store.create(ManifestName(manifest.step, generation).path, manifest_bytes(manifest))
    except FileExistsError:
        raise CheckpointConflict(
            f"another writer has saved step {manifest.step} in {store.uri}; its checkpoint stays. "
            "Is a second job training the same run.uri?"
        ) from None

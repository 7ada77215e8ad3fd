"""Writing one checkpoint: every worker its chunks and indexes, then worker 0 the manifest.

Nothing here is collective; how worker 0 learns what the others have written is `parts.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from dist_embed.checkpoint.catalogue import manifest_names, read_manifest
from dist_embed.checkpoint.chunk import BLOCK_BYTES, CHUNK_BYTES, ChunkWriter, Rows, cut_into_chunks
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointConflict,
    CheckpointDamaged,
    CheckpointError,
    ChunkInfo,
    Index,
    IndexInfo,
    Manifest,
    ManifestName,
    TensorInfo,
    manifest_bytes,
)
from dist_embed.storage.objects import ObjectStore
from dist_embed.storage.threads import in_threads

# Two, so that one chunk is hashed while another is on its way; more would only take memory.
WRITE_THREADS = 2
# An index of 64 GiB of float32 rows stays near 4 MiB.
CHUNKS_PER_INDEX = 1024
# How often manifests are listed until one can be written under the next name.
_LISTINGS = 3
_CHUNK = re.compile(r"chunk-(\d{5,})-(\d{6,})\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Description:
    """What the manifest says of a state, apart from where its bytes lie."""

    step: int
    fingerprint: str
    tensors: dict[str, TensorInfo]
    row_multipliers: dict[str, int]
    scalars_json: str


def new_attempt(step: int) -> str:
    """A name for one try to save a step: no other has it; says when it began, for whoever cleans
    up.
    """
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"step-{step:09d}-{began}-{secrets.token_hex(4)}"


def _index_name(rank: int, number: int) -> str:
    return f"index-{rank:05d}-{number:04d}.json"


def write_rows(
    store: ObjectStore,
    attempt: str,
    rows: list[Rows],
    rank: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    on_chunk: Callable[[], None] = lambda: None,
) -> list[IndexInfo]:
    """Write one worker's part of an attempt: its chunks, then their indexes.

    Args:
        store: the run's ``checkpoints`` folder.
        attempt: its name, the same on every worker.
        rows: what this worker writes.
        rank: of this worker.
        chunk_bytes: largest chunk.
        on_chunk: is called after each chunk, by the caller's thread.

    Returns the indexes, for the manifest. Raises OSError, StoreUnavailable.
    """
    found: dict[int, ChunkInfo] = {}

    def write(numbered: tuple[int, list[Rows]]) -> tuple[int, ChunkInfo]:
        number, chunk = numbered
        name = f"chunk-{rank:05d}-{number:06d}.safetensors"
        writer = ChunkWriter(name, chunk)
        store.put(f"{OBJECTS}/{attempt}/{name}", writer.blocks())
        return number, writer.info()

    def note(written: tuple[int, ChunkInfo]) -> None:
        number, found[number] = written
        on_chunk()

    in_threads(
        write, enumerate(cut_into_chunks(rows, chunk_bytes)), note, num_threads=WRITE_THREADS
    )
    chunks = [found[number] for number in sorted(found)]
    indexes = []
    for first in range(0, len(chunks), CHUNKS_PER_INDEX):
        part = chunks[first : first + CHUNKS_PER_INDEX]
        index = Index(chunks=part)
        data = index.model_dump_json().encode()
        name = _index_name(rank, first // CHUNKS_PER_INDEX)
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


def manifest_of(
    description: Description, attempt: str, num_workers: int, indexes: list[IndexInfo]
) -> Manifest:
    """The manifest of an attempt that all workers have written their parts of."""
    return Manifest.model_validate(
        {
            "step": description.step,
            "attempt": attempt,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "num_workers": num_workers,
            "fingerprint": description.fingerprint,
            "block_bytes": BLOCK_BYTES,
            "tensors": description.tensors,
            "row_multipliers": description.row_multipliers,
            "indexes": indexes,
            "scalars": json.loads(description.scalars_json),
        }
    )


def publish(
    store: ObjectStore,
    manifest: Manifest,
    *,
    damaged: Collection[ManifestName] = (),
    own: Collection[str] = (),
) -> ManifestName:
    """Make an attempt a checkpoint: write its manifest, once all that it names is there.

    Args:
        store: the run's ``checkpoints`` folder.
        manifest: of the attempt.
        damaged: manifests known to be damaged, which this one may follow.
        own: earlier attempts of this writer that were told as failed. A manifest of one of them is
            there where only the reply was lost; this one may follow it.

    Returns its name, which none of ``damaged`` has or had.

    Raises:
        CheckpointError: an object is missing or has another size. Nothing is published.
        CheckpointConflict: another writer has saved the step.
        OSError, StoreUnavailable: it could not be written; it may be there all the same.
    """
    _check_all_there(store, manifest)
    for _ in range(_LISTINGS):
        there = [name for name in manifest_names(store) if name.step == manifest.step]
        if any(n not in damaged and not _is_of(store, n, own) for n in there):
            break
        taken = {*there, *(name for name in damaged if name.step == manifest.step)}
        name = ManifestName(manifest.step, max((n.generation for n in taken), default=-1) + 1)
        # What has come in between may be one of our own: a put whose caller has long given it up.
        with suppress(FileExistsError):
            store.create(name.path, manifest_bytes(manifest))
            return name
    raise CheckpointConflict(
        f"another writer has saved step {manifest.step} in {store.uri}; its checkpoint stays. "
        "Is a second job training the same run.uri?"
    )


def _is_of(store: ObjectStore, name: ManifestName, attempts: Collection[str]) -> bool:
    """Whether a manifest is that of one of these attempts."""
    try:
        return bool(attempts) and read_manifest(store, name).attempt in attempts
    except CheckpointDamaged:
        return False


def _check_all_there(store: ObjectStore, manifest: Manifest) -> None:
    """Compare what workers say to have written with one listing of the attempt's folder: every
    index by its size, and the chunks of each by count and bytes.
    """
    folder = f"{OBJECTS}/{manifest.attempt}"
    sizes = {
        entry.name.removeprefix(f"{folder}/"): entry.size_bytes for entry in store.entries(folder)
    }
    counts: Counter[str] = Counter()
    chunk_bytes: Counter[str] = Counter()
    for name, size in sizes.items():
        if chunk := _CHUNK.fullmatch(name):
            lists_it = _index_name(int(chunk[1]), int(chunk[2]) // CHUNKS_PER_INDEX)
            counts[lists_it] += 1
            chunk_bytes[lists_it] += size
    for index in manifest.indexes:
        found = (sizes.get(index.name), counts[index.name], chunk_bytes[index.name])
        written = (index.size_bytes, index.num_chunks, index.chunk_bytes)
        if found != written:
            writer = int(index.name.split("-")[1])
            what = ("bytes of it", "chunks listed in it", "bytes of these chunks")
            different = ", ".join(
                f"{said}: {'none' if there is None else f'{there:,}'} instead of {told:,}"
                for said, there, told in zip(what, found, written, strict=True)
                if there != told
            )
            raise CheckpointError(
                f"{store.uri}: worker 0 does not find what worker {writer} has written there "
                f"({folder}/{index.name}, {different}). Is it a folder of each machine's own? All "
                "workers need the same one: shared, or a URL. Or did somebody prune with "
                "--leftover-hours below the time that a save takes?"
            )

"""What describes a table of 10⁹ × 512 stays small. Run with ``-s`` to see the sizes."""

from __future__ import annotations

import pytest

from dist_embed.checkpoint.chunk import BLOCK_BYTES, CHUNK_BYTES
from dist_embed.checkpoint.manifest import (
    MAX_INDEX_BYTES,
    MAX_MANIFEST_BYTES,
    ChunkInfo,
    Index,
    IndexInfo,
    Manifest,
    PieceInfo,
    TensorInfo,
    manifest_bytes,
)
from dist_embed.checkpoint.write import CHUNKS_PER_INDEX
from dist_embed.embedding.plan import shard_of

ROWS, WIDTH = 10**9, 512


def chunk(number: int, first_row: int, num_rows: int, size: int) -> ChunkInfo:
    return ChunkInfo(
        name=f"chunk-00000-{number:06d}.safetensors", size_bytes=size, sha256="0" * 64,
        blocks="0" * 64 * -(-size // BLOCK_BYTES),
        pieces=[PieceInfo(tensor="table.shared.weight", dtype="F32",
                          shape=[num_rows, WIDTH], first_row=first_row, offset=120)],
    )  # fmt: skip


@pytest.mark.parametrize("num_workers", [8, 64, 1024])
def test_manifest_and_indexes_of_a_table_of_two_tebibytes(num_workers: int) -> None:
    shard = shard_of(ROWS, 0, num_workers)
    rows_per_chunk = CHUNK_BYTES // (4 * WIDTH)
    num_chunks = -(-shard.num_rows // rows_per_chunk) + -(-4 * shard.num_rows // CHUNK_BYTES)
    full = [
        chunk(n, n * rows_per_chunk, rows_per_chunk, CHUNK_BYTES)
        for n in range(min(num_chunks, CHUNKS_PER_INDEX))
    ]
    index_bytes = len(Index(chunks=full).model_dump_json())
    per_worker = -(-num_chunks // CHUNKS_PER_INDEX)
    entries = [
        IndexInfo(name=f"index-{rank:05d}-{part:04d}.json", size_bytes=index_bytes,
                  sha256="0" * 64, num_chunks=CHUNKS_PER_INDEX, chunk_bytes=2**36,
                  rows={"table.shared.weight": [ROWS - 1, ROWS],
                        "table.shared.momentum1": [ROWS - 1, ROWS]})
        for rank in range(num_workers) for part in range(per_worker)
    ]  # fmt: skip
    manifest = Manifest(
        step=10**6, attempt="step-001000000-20260101T000000Z-00000000", created="", fingerprint="",
        num_workers=num_workers, block_bytes=BLOCK_BYTES, row_multipliers={"shared": 1},
        tensors={"table.shared.weight": TensorInfo(dtype="F32", shape=[ROWS, WIDTH]),
                 "table.shared.momentum1": TensorInfo(dtype="F32", shape=[ROWS])},
        indexes=entries, scalars={},
    )  # fmt: skip
    size = len(manifest_bytes(manifest))
    print(
        f"\n{num_workers} workers: {4 * ROWS * (WIDTH + 1) / 2**40:.2f} TiB in "
        f"{num_chunks * num_workers:,} chunks; {len(entries):,} indexes of at most "
        f"{index_bytes / 2**20:.2f} MiB; manifest {size / 2**10:.1f} KiB"
    )
    assert size < 512 * 2**10 < MAX_MANIFEST_BYTES
    assert index_bytes < 8 * 2**20 < MAX_INDEX_BYTES

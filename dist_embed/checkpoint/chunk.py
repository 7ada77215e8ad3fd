"""Chunks: some rows of some tensors as one safetensors object, with a digest per block."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_embed.checkpoint.manifest import ChunkInfo, DType, PieceInfo, TensorInfo

CHUNK_BYTES = 64 * 2**20
# What one digest covers. A reader of some rows reads at most a block too much at either end.
BLOCK_BYTES = 2**20

DTYPES: dict[DType, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a tensor, from ``first_row`` on; ``data`` is [R, ...] or one value."""

    tensor: str
    first_row: int
    data: Tensor

    @property
    def num_rows(self) -> int:
        """R; 1 for a single value."""
        return self.data.shape[0] if self.data.dim() else 1

    @property
    def size_bytes(self) -> int:
        """Bytes of the data."""
        return self.data.numel() * self.data.element_size()


def dtype_name(dtype: torch.dtype) -> DType:
    """The safetensors name of a type. Raises KeyError."""
    return _NAMES[dtype]


def row_bytes(info: TensorInfo) -> int:
    """Bytes of one row."""
    size = DTYPES[info.dtype].itemsize
    for length in info.shape[1:]:
        size *= length
    return size


def byte_view(data: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy; writing to it writes the tensor."""
    flat: Any = data.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def cut_into_chunks(rows: list[Rows], chunk_bytes: int = CHUNK_BYTES) -> Iterator[list[Rows]]:
    """Cut and collect rows to chunks of at most ``chunk_bytes``, or a single row where that is
    larger. Rows keep their order; empty ones are left out.
    """
    chunk: list[Rows] = []
    room = chunk_bytes
    for whole in rows:
        if not whole.size_bytes:
            continue
        per_row = whole.size_bytes // whole.num_rows
        done = 0
        while done < whole.num_rows:
            fitting = max(0, room) // per_row  # a larger row may have left less than none
            if not fitting and chunk:
                yield chunk
                chunk, room = [], chunk_bytes
                continue
            count = min(max(1, fitting), whole.num_rows - done)
            data = whole.data[done : done + count] if whole.data.dim() else whole.data
            chunk.append(Rows(whole.tensor, whole.first_row + done, data))
            room -= count * per_row
            done += count
    if chunk:
        yield chunk


def hashed(
    parts: Iterable[memoryview], block_bytes: int, digests: list[bytes]
) -> Iterator[memoryview]:
    """Pass on the bytes of ``parts`` in pieces that each lie in one block, and add the SHA-256 of
    every block to ``digests``; that of the last one once all pieces have been taken.
    """
    digest, room = hashlib.sha256(), block_bytes
    for part in parts:
        while part.nbytes:
            piece, part = part[:room], part[room:]
            digest.update(piece)
            room -= piece.nbytes
            if not room:
                digests.append(digest.digest())
                digest, room = hashlib.sha256(), block_bytes
            yield piece
    if room < block_bytes:
        digests.append(digest.digest())


class ChunkWriter:
    """Produces one chunk's bytes and their digests in the same pass.

    Args:
        name: the object's name, below the attempt's folder.
        rows: what it holds; may be on any device, one tensor at most once.
    """

    def __init__(self, name: str, rows: list[Rows]) -> None:
        self._name = name
        self._rows = rows
        header: dict[str, object] = {
            "__metadata__": {f"first_row {r.tensor}": str(r.first_row) for r in rows}
        }
        offset = 0
        for r in rows:
            header[r.tensor] = {
                "dtype": dtype_name(r.data.dtype),
                "shape": list(r.data.shape),
                "data_offsets": [offset, offset + r.size_bytes],
            }
            offset += r.size_bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
        self._header = struct.pack("<Q", len(text)) + text
        self._size = len(self._header) + offset
        self._digests: list[bytes] = []

    def blocks(self) -> Iterator[memoryview]:
        """The chunk's bytes, in parts of at most a block. Take them all, then ask for `info`."""
        self._digests.clear()
        return hashed(self._parts(), BLOCK_BYTES, self._digests)

    def info(self) -> ChunkInfo:
        """The chunk's entry in the index, once all `blocks` have been taken."""
        pieces = []
        offset = len(self._header)
        for r in self._rows:
            pieces.append(
                PieceInfo(
                    tensor=r.tensor,
                    dtype=dtype_name(r.data.dtype),
                    shape=list(r.data.shape),
                    first_row=r.first_row,
                    offset=offset,
                )
            )
            offset += r.size_bytes
        return ChunkInfo(
            name=self._name,
            size_bytes=self._size,
            sha256=hashlib.sha256(b"".join(self._digests)).hexdigest(),
            blocks=b"".join(self._digests).hex(),
            pieces=pieces,
        )

    def _parts(self) -> Iterator[memoryview]:
        yield memoryview(self._header)
        for r in self._rows:
            yield byte_view(r.data.cpu().contiguous())

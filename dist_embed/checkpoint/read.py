"""Reading rows out of a checkpoint: only the blocks they lie in, each proven before it is used."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dist_embed.checkpoint.chunk import DTYPES, Rows, byte_view, hashed, row_bytes
from dist_embed.checkpoint.manifest import (
    MAX_INDEX_BYTES,
    CheckpointDamaged,
    ChunkInfo,
    Index,
    IndexInfo,
    Manifest,
    TensorInfo,
    parse_index,
)
from dist_embed.storage.objects import ForeignObject, ObjectStore

READ_THREADS = 4
# Read at once: enough for an object store to be fast, and with all threads 32 MiB of memory.
SPAN_BYTES = 8 * 2**20


@dataclass
class _Wish:
    """Bytes ``start`` to ``end`` of a chunk, and where they go."""

    start: int
    end: int
    target: memoryview


@dataclass
class _ChunkWishes:
    chunk: ChunkInfo
    wishes: list[_Wish] = field(default_factory=list)


# A chunk, bytes of it, and the wishes that lie in them.
_Job = tuple[ChunkInfo, tuple[int, int], list[_Wish]]


class CheckpointReader:
    """Reads the tensors of one checkpoint.

    Args:
        store: the run's ``checkpoints`` folder.
        manifest: a proven one.

    Attributes:
        bytes_read: of indexes and chunks, so far.

    Nothing here is collective. All methods raise CheckpointDamaged where bytes are not those that
    were saved, and StoreUnavailable or OSError where they cannot be read.
    """

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store = store
        self.manifest = manifest
        self._indexes: dict[str, Index] = {}
        self._thread = threading.local()
        self.bytes_read = 0

    def fill(self, wanted: list[Rows]) -> None:
        """Fill the tensors of ``wanted`` with the saved rows that they stand for.

        Their content is undefined when this raises; the caller gives tensors of its own.
        """
        self._run(self._plan(wanted))

    def prove(self, wanted: list[Rows]) -> None:
        """Read and prove what `fill` would read, and leave ``wanted`` as it is."""
        self._run([(chunk, span, []) for chunk, span, _ in self._plan(wanted)])

    def _run(self, jobs: list[_Job]) -> None:
        with ThreadPoolExecutor(READ_THREADS, "checkpoint-read") as threads:
            try:
                for count in threads.map(self._read_span, *zip(*jobs, strict=True)) if jobs else ():
                    self.bytes_read += count
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def rows(self, tensor: str, first_row: int, num_rows: int) -> Tensor:
        """Rows of one tensor: [num_rows, ...]; the value itself for a single value."""
        info = self.manifest.tensors[tensor]
        shape = [num_rows, *info.shape[1:]] if info.shape else []
        data = torch.empty(shape, dtype=DTYPES[info.dtype])
        self.fill([Rows(tensor, first_row, data)])
        return data

    def verify(self, on_chunk: Callable[[int], None] | None = None) -> None:
        """Read and prove every byte, and that the chunks hold every row of every tensor once.

        ``on_chunk`` is told the bytes of each chunk read.
        """
        self.check_complete()
        with ThreadPoolExecutor(READ_THREADS, "checkpoint-read") as threads:
            for info in self.manifest.indexes:
                for chunk in self._index(info).chunks:
                    spans = list(_spans(0, chunk.size_bytes, self._block))
                    read = partial(self._read_span, chunk, wishes=[])
                    self.bytes_read += sum(threads.map(read, spans))
                    if on_chunk:
                        on_chunk(chunk.size_bytes)
                self._indexes.clear()  # one at a time in memory

    @property
    def _block(self) -> int:
        return self.manifest.block_bytes

    def _index(self, info: IndexInfo) -> Index:
        """An index object, proven and checked against the manifest."""
        if info.name in self._indexes:
            return self._indexes[info.name]
        name = self.manifest.object_name(info.name)
        data = self._read(name, 0, min(info.size_bytes, MAX_INDEX_BYTES) + 1)
        self.bytes_read += len(data)
        if len(data) != info.size_bytes or hashlib.sha256(data).hexdigest() != info.sha256:
            raise CheckpointDamaged(f"{self._store.uri}/{name}: not the bytes that were written")
        index = parse_index(data, f"{self._store.uri}/{name}")
        if not index.is_described_by(info):
            raise CheckpointDamaged(f"{self._store.uri}/{name}: the manifest says otherwise of it")
        for chunk in index.chunks:
            self._check_chunk(chunk)
        self._indexes[info.name] = index
        return index

    def _check_chunk(self, chunk: ChunkInfo) -> None:
        """That an index entry is consistent with itself and with the tensors of the manifest."""
        origin = f"{self._store.uri}/{self.manifest.object_name(chunk.name)}"
        digests = bytes.fromhex(chunk.blocks)
        if len(digests) // 32 != -(-chunk.size_bytes // self._block):
            raise CheckpointDamaged(f"{origin}: digests do not fit {chunk.size_bytes} bytes")
        if hashlib.sha256(digests).hexdigest() != chunk.sha256:
            raise CheckpointDamaged(f"{origin}: digests of the blocks are not those written")
        reached = 0
        for piece in chunk.pieces:
            info = self.manifest.tensors.get(piece.tensor)
            if (
                info is None
                or (piece.dtype, piece.shape[1:]) != (info.dtype, info.shape[1:])
                or bool(piece.shape) != bool(info.shape)
                or piece.first_row + piece.num_rows > info.num_rows
            ):
                raise CheckpointDamaged(f"{origin}: holds rows that {piece.tensor!r} has not")
            if piece.offset < reached:
                raise CheckpointDamaged(f"{origin}: rows of {piece.tensor!r} lie over others")
            reached = piece.offset + piece.num_rows * row_bytes(info)
            if reached > chunk.size_bytes:
                raise CheckpointDamaged(f"{origin}: ends before the rows of {piece.tensor!r}")

    def _plan(self, wanted: list[Rows]) -> list[_Job]:
        """The spans to read, each with the wishes that lie in it."""
        for rows in wanted:
            self._check_wanted(rows)
        by_tensor = {rows.tensor: rows for rows in wanted}
        chunks: dict[str, _ChunkWishes] = {}
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in by_tensor}
        for info in self.manifest.indexes:
            spans = ((by_tensor[n], span) for n, span in info.rows.items() if n in by_tensor)
            if not any(_overlap(rows, span[0], span[1]) for rows, span in spans):
                continue
            for chunk in self._index(info).chunks:
                for piece in chunk.pieces:
                    if piece.tensor not in by_tensor:
                        continue
                    rows = by_tensor[piece.tensor]
                    end_row = piece.first_row + piece.num_rows
                    common = _overlap(rows, piece.first_row, end_row)
                    if common is None:
                        continue
                    found[piece.tensor].append(common)
                    per_row = row_bytes(self.manifest.tensors[piece.tensor])
                    start = piece.offset + (common[0] - piece.first_row) * per_row
                    at = (common[0] - rows.first_row) * per_row
                    size = (common[1] - common[0]) * per_row
                    chunks.setdefault(chunk.name, _ChunkWishes(chunk)).wishes.append(
                        _Wish(start, start + size, byte_view(rows.data)[at : at + size])
                    )
        for name, parts in found.items():
            rows = by_tensor[name]
            if rows.size_bytes:
                self._check_tiled(name, parts, rows.first_row, rows.first_row + rows.num_rows)
        return [job for wishes in chunks.values() for job in self._jobs(wishes)]

    def _jobs(self, wishes: _ChunkWishes) -> Iterator[_Job]:
        """Spans of whole blocks that cover the wishes of one chunk, none read twice."""
        ordered = sorted(wishes.wishes, key=lambda wish: wish.start)
        merged: list[tuple[int, int]] = []
        for wish in ordered:
            start = wish.start // self._block * self._block
            end = min(-(-wish.end // self._block) * self._block, wishes.chunk.size_bytes)
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
        for first, last in merged:
            for span in _spans(first, last, self._block):
                inside = [w for w in ordered if w.start < span[1] and w.end > span[0]]
                yield wishes.chunk, span, inside

    def _read_span(self, chunk: ChunkInfo, span: tuple[int, int], wishes: list[_Wish]) -> int:
        """Read whole blocks, prove them, and hand out what was wished for."""
        name = self.manifest.object_name(chunk.name)
        parts = self._parts(span, wishes)
        # What was damaged on its way here may come well the second time.
        if not any(self._is_proven(name, chunk, span, parts) for _ in range(2)):
            raise CheckpointDamaged(
                f"{self._store.uri}/{name}: bytes {span[0]} to {span[1]} are not those written"
            )
        return span[1] - span[0]

    def _parts(self, span: tuple[int, int], wishes: list[_Wish]) -> list[memoryview]:
        """Where the span's bytes go, in turn: what is wished for straight to its target, the rest
        to a buffer of this thread.
        """
        if not hasattr(self._thread, "buffer"):
            # Kept: fresh memory for every span costs more than reading it.
            self._thread.buffer = memoryview(bytearray(max(SPAN_BYTES, self._block)))
        rest: memoryview = self._thread.buffer
        parts: list[memoryview] = []
        reached = span[0]
        for wish in wishes:
            start, end = max(wish.start, span[0]), min(wish.end, span[1])
            if start > reached:
                parts.append(rest[reached - span[0] : start - span[0]])
            parts.append(wish.target[start - wish.start : end - wish.start])
            reached = end
        if span[1] > reached:
            parts.append(rest[reached - span[0] : span[1] - span[0]])
        return parts

    def _is_proven(
        self, name: str, chunk: ChunkInfo, span: tuple[int, int], parts: list[memoryview]
    ) -> bool:
        """Read the span into ``parts``; whether the bytes are those that were written."""
        start, end = span
        # One byte more at the chunk's end shows a longer object than was written.
        over = [memoryview(bytearray(1))] if end == chunk.size_bytes else []
        try:
            count = self._store.read_into(name, start, [*parts, *over])
        except (FileNotFoundError, NotADirectoryError, ForeignObject) as exc:
            raise CheckpointDamaged(f"{self._store.uri}/{name}: {exc}") from exc
        if count != end - start:
            return False
        digests: list[bytes] = []
        for _ in hashed(parts, self._block, digests):
            pass
        first = start // self._block
        return all(d == chunk.block_digest(first + n) for n, d in enumerate(digests))

    def _read(self, name: str, start: int, end: int) -> bytes | bytearray:
        try:
            return self._store.read(name, start, end)
        except (FileNotFoundError, NotADirectoryError, ForeignObject) as exc:
            raise CheckpointDamaged(f"{self._store.uri}/{name}: {exc}") from exc

    def _check_wanted(self, rows: Rows) -> None:
        info = self.manifest.tensors[rows.tensor]
        shape = [rows.num_rows, *info.shape[1:]] if info.shape else []
        if DTYPES[info.dtype] != rows.data.dtype or shape != list(rows.data.shape):
            raise ValueError(f"{rows.tensor} is saved as {info}, wanted as {rows.data.shape}")

    def check_complete(self) -> None:
        """Prove the indexes, and that they name every row of every tensor, each once."""
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in self.manifest.tensors}
        for info in self.manifest.indexes:
            for chunk in self._index(info).chunks:
                for piece in chunk.pieces:
                    end = piece.first_row + piece.num_rows
                    found[piece.tensor].append((piece.first_row, end))
            self._indexes.clear()
        for name, tensor in self.manifest.tensors.items():
            rows = tensor.num_rows if row_bytes(tensor) else 0
            self._check_tiled(name, found[name], 0, rows)

    def _check_tiled(self, name: str, parts: list[tuple[int, int]], first: int, end: int) -> None:
        """That ``parts`` are rows ``first`` to ``end``, each once."""
        reached = first
        for start, stop in sorted(parts):
            if start != reached:
                break
            reached = stop
        if reached != end or sum(stop - start for start, stop in parts) != end - first:
            raise CheckpointDamaged(
                f"step {self.manifest.step} in {self._store.uri}: the chunks do not hold rows "
                f"{first} to {end} of {name}, each once"
            )


def describe_tensor(info: TensorInfo) -> str:
    """Type and shape, for people."""
    return f"{info.dtype} {' × '.join(f'{n:,}' for n in info.shape) or 'single value'}"


def _spans(start: int, end: int, block: int) -> Iterator[tuple[int, int]]:
    """Cut [start, end) into pieces of whole blocks; ``start`` lies at the start of a block."""
    step = max(block, SPAN_BYTES // block * block)
    for first in range(start, end, step):
        yield first, min(first + step, end)


def _overlap(rows: Rows, first_row: int, end_row: int) -> tuple[int, int] | None:
    start = max(rows.first_row, first_row)
    end = min(rows.first_row + rows.num_rows, end_row)
    return (start, end) if start < end else None

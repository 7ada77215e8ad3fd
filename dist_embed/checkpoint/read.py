"""Reading rows out of a checkpoint: only the blocks they lie in, each proven before it is used."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    PieceInfo,
    TensorInfo,
    parse_index,
)
from dist_embed.storage.objects import ForeignObject, ObjectStore
from dist_embed.storage.threads import in_threads

READ_THREADS = 4
# Read at once: enough for an object store to be fast, and with all threads 32 MiB of memory.
READ_BYTES = 8 * 2**20


@dataclass(frozen=True)
class _Target:
    """Where the bytes of a chunk from ``start`` on belong."""

    start: int
    memory: memoryview

    @property
    def end(self) -> int:
        return self.start + self.memory.nbytes


@dataclass(frozen=True)
class _Read:
    """Whole blocks of a chunk, bytes ``start`` to ``end``, read at once and proven; what belongs to
    ``targets``, which lie in the chunk's order, goes there.
    """

    chunk: ChunkInfo
    start: int
    end: int
    targets: list[_Target]


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
        """Fill the tensors of ``wanted``, each named once, with the saved rows they stand for.

        Their content is undefined when this raises; the caller gives tensors of its own.
        """
        self._carry_out(self._reads_of(wanted))

    def prove(self, wanted: list[Rows]) -> None:
        """Read and prove what `fill` would read, and leave ``wanted`` as it is."""
        self._carry_out([replace(read, targets=[]) for read in self._reads_of(wanted)])

    def rows(self, tensor: str, first_row: int, num_rows: int) -> Tensor:
        """Rows of one tensor: [num_rows, ...]; the value itself for a single value."""
        info = self.manifest.tensors[tensor]
        shape = [num_rows, *info.shape[1:]] if info.shape else []
        data = torch.empty(shape, dtype=DTYPES[info.dtype])
        self.fill([Rows(tensor, first_row, data)])
        return data

    def verify(self) -> None:
        """Read and prove every byte, and that the chunks hold every row of every tensor once."""
        self.check_complete()
        for info in self.manifest.indexes:
            reads: list[_Read] = []
            for chunk in self._index(info).chunks:
                blocks = range(-(-chunk.size_bytes // self._block))
                reads += self._reads(chunk, blocks, [])
            self._carry_out(reads)
            self._indexes.clear()  # one at a time in memory

    def _carry_out(self, reads: list[_Read]) -> None:
        def note(num_bytes: int) -> None:
            self.bytes_read += num_bytes

        in_threads(self._read_blocks, reads, note, num_threads=READ_THREADS)

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

    def _reads_of(self, wanted: list[Rows]) -> list[_Read]:
        """What to read so that ``wanted`` is filled: no block twice, and none in vain."""
        reads: list[_Read] = []
        rows_of = {rows.tensor: rows for rows in wanted}
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in rows_of}
        for rows in wanted:
            self._check_wanted(rows)
        for info in self.manifest.indexes:
            if not any(
                _common_rows(rows_of[name], first, end)
                for name, (first, end) in info.rows.items()
                if name in rows_of
            ):
                continue
            for chunk in self._index(info).chunks:
                targets: list[_Target] = []
                for piece in chunk.pieces:
                    if piece.tensor not in rows_of:
                        continue
                    rows = rows_of[piece.tensor]
                    common = _common_rows(rows, piece.first_row, piece.end_row)
                    if common:
                        found[piece.tensor].append((common.start, common.stop))
                        targets.append(self._target(rows, piece, common))
                reads += self._reads(chunk, self._blocks_of(targets), targets)
        for rows in wanted:
            if rows.size_bytes:
                end = rows.first_row + rows.num_rows
                self._check_tiled(rows.tensor, found[rows.tensor], rows.first_row, end)
        return reads

    def _target(self, rows: Rows, piece: PieceInfo, common: range) -> _Target:
        """Where rows that ``piece`` and ``rows`` have in common lie in the chunk, and belong."""
        per_row = row_bytes(self.manifest.tensors[rows.tensor])
        at = (common.start - rows.first_row) * per_row
        memory = byte_view(rows.data)[at : at + len(common) * per_row]
        return _Target(piece.offset + (common.start - piece.first_row) * per_row, memory)

    def _blocks_of(self, targets: list[_Target]) -> list[int]:
        """The blocks that any of these bytes lie in, ascending."""
        blocks: set[int] = set()
        for target in targets:
            blocks.update(range(target.start // self._block, -(-target.end // self._block)))
        return sorted(blocks)

    def _reads(
        self, chunk: ChunkInfo, blocks: Sequence[int], targets: list[_Target]
    ) -> Iterator[_Read]:
        """Reads of ``blocks``, ascending: of neighbours together, up to `READ_BYTES`."""
        most = max(1, READ_BYTES // self._block)
        first = 0  # place in `blocks`
        for place in range(1, len(blocks) + 1):
            count = place - first
            if place < len(blocks) and blocks[place] == blocks[first] + count and count < most:
                continue
            start = blocks[first] * self._block
            end = min(start + count * self._block, chunk.size_bytes)
            inside = [target for target in targets if target.start < end and start < target.end]
            yield _Read(chunk, start, end, inside)
            first = place

    def _read_blocks(self, read: _Read) -> int:
        """Carry out one read; returns its bytes. Raises CheckpointDamaged."""
        name = self.manifest.object_name(read.chunk.name)
        memory = self._memory(read)
        # What was damaged on its way here may come well the second time.
        if not any(self._is_proven(name, read, memory) for _ in range(2)):
            raise CheckpointDamaged(
                f"{self._store.uri}/{name}: bytes {read.start} to {read.end} are not those written"
            )
        return read.end - read.start

    def _memory(self, read: _Read) -> list[memoryview]:
        """Where the bytes of a read go, in turn: to the targets, what lies between them to a buffer
        of this thread.
        """
        if not hasattr(self._thread, "buffer"):
            # Kept: fresh memory for every read costs more than reading it.
            size = max(READ_BYTES, self._block)
            self._thread.buffer = byte_view(torch.empty(size, dtype=torch.uint8))
        rest: memoryview = self._thread.buffer
        memory: list[memoryview] = []
        reached = read.start
        for target in read.targets:
            start, end = max(target.start, read.start), min(target.end, read.end)
            memory.append(rest[reached - read.start : start - read.start])
            memory.append(target.memory[start - target.start : end - target.start])
            reached = end
        memory.append(rest[reached - read.start : read.end - read.start])
        return memory

    def _is_proven(self, name: str, read: _Read, memory: list[memoryview]) -> bool:
        """Read into ``memory``; whether the bytes are those that were written."""
        # One byte more at the chunk's end shows a longer object than was written.
        over = [memoryview(bytearray(1))] if read.end == read.chunk.size_bytes else []
        try:
            count = self._store.read_into(name, read.start, [*memory, *over])
        except (FileNotFoundError, NotADirectoryError, ForeignObject) as exc:
            raise CheckpointDamaged(f"{self._store.uri}/{name}: {exc}") from exc
        if count != read.end - read.start:
            return False
        digests: list[bytes] = []
        for _ in hashed(memory, self._block, digests):
            pass
        first = read.start // self._block
        return all(d == read.chunk.block_digest(first + n) for n, d in enumerate(digests))

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
                    found[piece.tensor].append((piece.first_row, piece.end_row))
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


def _common_rows(rows: Rows, first_row: int, end_row: int) -> range:
    """Which of rows ``first_row`` to ``end_row`` are among ``rows``."""
    return range(max(rows.first_row, first_row), min(rows.first_row + rows.num_rows, end_row))

"""The index of a split's blocks: where they lie in the shards, what proves them, and the lengths
of their sentences.

A block is a row group of a shard. The index is one file of Arrow's own format with a row per block,
proven by ``data.json``, and stays packed in memory; a local one is mapped, so that all processes of
a machine have one copy of it, in the system's cache.

**Lengths are kept in their order**, target first, then source, as differences that zlib packs:
which sentence has which length would take four times as much. Whoever reads a block sorts it
likewise (`order_of_lengths`), so that sentence i of it is the same one to both.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.proof import FileInfo, prove, told_of
from dist_embed.data.token_shards import REMEDY, SIDES, PreparedData
from dist_embed.storage import uri as storage
from dist_embed.storage.local_file import regular
from dist_embed.storage.parquet import row_groups

_COLUMNS = pa.schema(
    [
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.int64()),
        ("size_bytes", pa.int64()),
        ("sentences", pa.int64()),
        ("source_tokens", pa.int64()),
        ("target_tokens", pa.int64()),
        ("sha256", pa.binary(32)),
        ("lengths", pa.large_binary()),
        # Of a shard's first block: its last bytes, which say how to read it; packed by zlib.
        ("footer", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class ShardBlocks:
    """The rows of the index for one shard: a column each, by name."""

    columns: dict[str, list[bytes | int | None]] = field(
        default_factory=lambda: {name: [] for name in _COLUMNS.names[1:]}
    )


def index_name(shard_name: str) -> str:
    """The file of the index, in the folder of its shards."""
    return f"{shard_name.rpartition('/')[0]}/blocks.arrow"


def has_blocks(data: PreparedData, split: str) -> bool:
    """Whether there is an index of a split; it came later than digests."""
    return any(index_name(shard.name) in data.files for shard in data.splits[split].shards[:1])


def order_of_lengths(source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of a block's sentences, by target length, then source length, then place."""
    order: NDArray[np.int64] = np.lexsort((source, target))
    return order


def pack_lengths(source: NDArray[np.int64], target: NDArray[np.int64]) -> bytes:
    """The lengths of a block's sentences, which are in their order."""
    steps = np.concatenate([np.diff(side, prepend=0) for side in (source, target)])
    # All first bytes, then all second ones: most of the others are 0.
    return zlib.compress(steps.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes())


def unpack_lengths(packed: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What `pack_lengths` was given."""
    planes = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(4, -1)
    steps = np.ascontiguousarray(planes.T).view("<i4").reshape(2, -1)
    source, target = np.cumsum(steps, axis=1, dtype=np.int64)
    return source, target


def blocks_of(content: bytes, source: pa.ListArray, target: pa.ListArray) -> ShardBlocks:
    """The rows of the index for a shard with these bytes and token lists."""
    groups, footer = row_groups(content, SIDES)
    lengths = [
        pc.list_value_length(lists).to_numpy().astype(np.int64) for lists in (source, target)
    ]
    rows, first = ShardBlocks(), 0
    for group in groups:
        left, right = (side[first : first + group.rows] for side in lengths)
        order = order_of_lengths(left, right)
        part = content[group.start : group.end]
        values = (
            group.start, len(part), group.rows, int(left.sum()), int(right.sum()),
            bytes.fromhex(FileInfo.of(part).sha256), pack_lengths(left[order], right[order]),
            zlib.compress(footer) if first == 0 else None,
        )  # fmt: skip
        for column, value in zip(rows.columns.values(), values, strict=True):
            column.append(value)
        first += group.rows
    return rows


def write_index(uri: str, names: Sequence[str], shards: Sequence[ShardBlocks]) -> FileInfo:
    """Write the index of a split with these shards; returns what proves it."""
    numbers = [n for n, shard in enumerate(shards) for _ in shard.columns["start"]]
    columns = [pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(names))]
    for name, kind in list(zip(_COLUMNS.names, _COLUMNS.types, strict=True))[1:]:
        values = [value for shard in shards for value in shard.columns[name]]
        columns.append(pa.array(values, kind))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _COLUMNS) as file:
        file.write(pa.record_batch(columns, schema=_COLUMNS))
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(uri, content)
    return FileInfo.of(content)


def read_index(uri: str, expected: FileInfo) -> pa.RecordBatch:
    """The whole index, proven. Raises UserError."""
    with told_of(uri, "index of blocks", REMEDY):
        content = _mapped(uri) if storage.is_local(uri) else pa.py_buffer(storage.read_bytes(uri))
    prove(memoryview(content), expected, uri, REMEDY)
    return pa.ipc.open_file(content).get_batch(0)


def _mapped(uri: str) -> pa.Buffer:
    path = storage.local_path(uri)
    os.close(regular(path, os.O_RDONLY))  # a pipe would be waited for
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()

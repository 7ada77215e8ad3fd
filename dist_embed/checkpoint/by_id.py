"""Rows of a table into a file in the order of their ids, of which a checkpoint's is a permutation.

Neighbouring ids lie in different chunks, so rows that go each to its place in the file, or are
fetched from theirs in the checkpoint, touch a page or a block each. Here ids are cut into ranges,
buckets, each small enough for memory. In a first pass the checkpoint is read in its own order, and
what a strip of it has for a bucket is appended to the bucket, which lies in the file where its rows
belong. In a second each bucket is read, put in order and written back: where a row has arrived in
it follows from its number. So every row is read once from the checkpoint and once from the file,
and written twice, in long runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.checkpoint.chunk import byte_view, row_bytes
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.embedding.row_order import RowOrder

# Read at once from the checkpoint.
STRIP_BYTES = 32 * 2**20
# Of a bucket; but there are not more than so many, so that one gets 32 KiB or so of every strip.
BUCKET_BYTES = 32 * 2**20
MOST_BUCKETS = 1024

Ids = range | NDArray[np.int64]


def write_by_id(
    handle: int,
    offset: int,
    reader: CheckpointReader,
    name: str,
    ids: Ids,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Write rows of a table, the i-th for the i-th of ``ids``, from byte ``offset`` of a file on.

    Args:
        handle: of a file that may be read and written, and has the room.
        offset: where its first row belongs.
        reader: of the checkpoint.
        name: the tensor's.
        ids: of the rows, ascending; a range has steps of 1.
        on_bytes: is told the bytes of each strip that has been read.

    Raises as `CheckpointReader.rows`, and OSError. Holds three strips of rows, or two buckets.
    """
    info = reader.manifest.tensors[name]
    per_row = row_bytes(info)
    if not len(ids) or not per_row:
        return
    order = RowOrder(info.num_rows)
    bucket_rows = max(1, BUCKET_BYTES // per_row, -(-len(ids) // MOST_BUCKETS))
    filled = [0] * -(-len(ids) // bucket_rows)
    strip_rows = max(1, STRIP_BYTES // per_row)
    for first in range(0, info.num_rows, strip_rows):
        count = min(strip_rows, info.num_rows - first)
        chosen, places = _places(order.ids_of(torch.arange(first, first + count)).numpy(), ids)
        if not len(chosen):
            continue
        data = byte_view(reader.rows(name, first, count))
        buckets = places // bucket_rows
        by_bucket = np.argsort(buckets, kind="stable")  # rows of each stay ascending
        rows = np.asarray(data).reshape(count, per_row)[chosen[by_bucket]]
        for bucket, some in _rows_of_buckets(rows, buckets[by_bucket]):
            _write(handle, some, offset + (bucket * bucket_rows + filled[bucket]) * per_row)
            filled[bucket] += len(some)
        if on_bytes:
            on_bytes(count * per_row)
    for bucket in range(len(filled)):
        own = _array(ids[bucket * bucket_rows : (bucket + 1) * bucket_rows])
        at = offset + bucket * bucket_rows * per_row
        arrived = _read(handle, len(own) * per_row, at).reshape(len(own), per_row)
        rows = np.empty_like(arrived)
        rows[np.argsort(order.rows_of(torch.from_numpy(own)).numpy())] = arrived
        _write(handle, rows, at)


def _places(found: NDArray[np.int64], ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the ids ``found`` are wanted, and their places among ``ids``."""
    chosen = np.flatnonzero((found >= ids[0]) & (found <= ids[-1]))
    if isinstance(ids, range):
        return chosen, found[chosen] - ids.start
    places = np.searchsorted(ids, found[chosen])
    wanted = ids[places] == found[chosen]
    return chosen[wanted], places[wanted]


def _array(ids: Ids) -> NDArray[np.int64]:
    return np.arange(ids.start, ids.stop) if isinstance(ids, range) else ids


def _rows_of_buckets(rows: Any, buckets: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    """Rows that are sorted by their ``buckets``: each bucket and its rows."""
    starts = np.flatnonzero(np.diff(buckets, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(buckets)], strict=True):
        yield int(buckets[start]), rows[start:end]


def _write(handle: int, data: Any, at: int) -> None:
    left = memoryview(data).cast("B")
    while left.nbytes:  # the system takes at most 2 GiB at once
        count = os.pwrite(handle, left, at)
        left, at = left[count:], at + count


def _read(handle: int, size: int, at: int) -> Any:
    """[size] uint8."""
    data: Any = np.empty(size, dtype=np.uint8)
    left = memoryview(data)
    while left.nbytes:
        count = os.preadv(handle, [left], at)
        if not count:
            raise OSError(f"the file ends at byte {at:,}: something else has shortened it")
        left, at = left[count:], at + count
    return data

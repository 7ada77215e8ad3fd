"""A checkpoint as one safetensors file, for use without dist_embed."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.checkpoint.chunk import byte_view, row_bytes
from dist_embed.checkpoint.manifest import CheckpointError, Manifest, TensorInfo
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.embedding.row_order import RowOrder
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ObjectStore

# Read at once. With the reader's own buffers this bounds the memory, however large the table.
STRIP_BYTES = 32 * 2**20


def export_checkpoint(
    store: ObjectStore,
    manifest: Manifest,
    output: Path,
    *,
    table: str | None,
    ids: NDArray[np.int64] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, TensorInfo]:
    """Write a checkpoint's weights into one safetensors file.

    Tables are written in the order of ids, row i for id i, and without their optimizer's state.

    Args:
        store: the run's ``checkpoints`` folder.
        manifest: a proven one.
        output: the file; appears when it is whole, replaces one of that name.
        table: write this table alone, as ``weight``: what ``nn.Embedding.load_state_dict`` takes.
            None: all tables, as ``table.NAME.weight``, and the model, as ``model.…``.
        ids: of the one table write these rows alone, row i for the i-th of them; ascending.
        on_bytes: is told the bytes of each strip written.

    Returns the tensors written. Raises CheckpointError, where there is no such table or the
    checkpoint is damaged. Holds a strip of rows at a time. Not collective.
    """
    names = _names(manifest, table)
    reader = CheckpointReader(store, manifest)
    reader.check_complete()  # before a file of the size that the manifest says is made
    header: dict[str, Any] = {"__metadata__": {"step": str(manifest.step)}}
    offset = 0
    places: dict[str, int] = {}
    for name, saved in names.items():
        info = manifest.tensors[saved]
        if ids is not None:
            info = info.model_copy(update={"shape": [len(ids), *info.shape[1:]]})
        size = math.prod(info.shape[1:] or [1]) * info.num_rows
        size *= row_bytes(info) // max(1, math.prod(info.shape[1:]))
        header[name] = {
            "dtype": info.dtype, "shape": info.shape, "data_offsets": [offset, offset + size]
        }  # fmt: skip
        places[name] = offset
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = struct.pack("<Q", len(text)) + text
    with storage.whole_file(str(output)) as file:
        file.write(prefix)
        file.flush()
        # With its blocks: on a full disk writing to mapped memory would end the process (SIGBUS).
        os.posix_fallocate(file.fileno(), 0, len(prefix) + offset)
        for name, saved in names.items():
            _write_tensor(file.fileno(), len(prefix) + places[name], reader, saved, ids, on_bytes)
    return {name: manifest.tensors[saved] for name, saved in names.items()}


def _names(manifest: Manifest, table: str | None) -> dict[str, str]:
    """Name in the file → name in the checkpoint."""
    if table is None:
        return {
            name: name
            for name in manifest.tensors
            if name.startswith("model.") or (name.startswith("table.") and name.endswith(".weight"))
        }
    if f"table.{table}.weight" not in manifest.tensors:
        raise CheckpointError(
            f"the checkpoint of step {manifest.step} has no table {table!r}; it has "
            + ", ".join(manifest.row_multipliers)
        )
    return {"weight": f"table.{table}.weight"}


def _write_tensor(
    handle: int,
    offset: int,
    reader: CheckpointReader,
    name: str,
    wanted: NDArray[np.int64] | None,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """Write one tensor at ``offset``: strips in the checkpoint's order, each row to its place."""
    info = reader.manifest.tensors[name]
    per_row = row_bytes(info)
    total = (info.num_rows if wanted is None else len(wanted)) * per_row
    if not total:
        return
    strip_rows = max(1, STRIP_BYTES // per_row)
    order = None
    if name.startswith("table."):
        order = RowOrder(info.num_rows)
        table = name.removeprefix("table.").removesuffix(".weight")
        if order.multiplier != reader.manifest.row_multipliers.get(table):
            raise CheckpointError(f"{name} was written with another order of rows")
    for first in range(0, info.num_rows, strip_rows):
        count = min(strip_rows, info.num_rows - first)
        data = byte_view(reader.rows(name, first, count))
        if order is None:
            os.pwrite(handle, data, offset + first * per_row)
        else:
            ids = order.ids_of(torch.arange(first, first + count)).numpy()
            rows = np.asarray(data).reshape(count, per_row)
            if wanted is not None:
                place = np.searchsorted(wanted, ids).clip(max=len(wanted) - 1)
                chosen = wanted[place] == ids
                rows, ids = rows[chosen], place[chosen]
            _scatter(handle, offset, total, rows, ids)
        if on_bytes:
            on_bytes(len(data))


def _scatter(handle: int, offset: int, total: int, rows: Any, places: Any) -> None:
    """Write rows to their places. The file is mapped anew for each strip, so that the
    pages it touches are the system's to keep or write, not this process's memory.
    """
    page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(handle, offset - page + total, offset=page) as mapped:
        view: Any = np.frombuffer(mapped, dtype=np.uint8, offset=offset - page, count=total)
        view.reshape(-1, rows.shape[1])[places] = rows
        del view

"""A checkpoint as one safetensors file, for use without dist_embed."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_embed.checkpoint.by_id import STRIP_BYTES, Ids, write_by_id
from dist_embed.checkpoint.chunk import byte_view, row_bytes
from dist_embed.checkpoint.manifest import CheckpointError, Manifest, TensorInfo
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.embedding.row_order import RowOrder
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ObjectStore

_MOST_FILES = 99_999


@dataclass(frozen=True)
class Part:
    """One of the files that an export is cut into, each for a range of its rows.

    Each may be written by a process of its own, on any machine.

    Attributes:
        number: from 1 on.
        count: of all; 1: the export is one file.

    Raises UserError where there is no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= _MOST_FILES:
            raise UserError(
                f"part {self.number} of {self.count} is not allowed: parts are counted from 1 to "
                f"their number, which is at most {_MOST_FILES:,}"
            )

    def rows(self, num_rows: int) -> range:
        """Which of so many rows are this part's."""
        first, end = (number * num_rows // self.count for number in (self.number - 1, self.number))
        return range(first, end)

    def name(self, output: str) -> str:
        """The file's name: in the order of names, parts are in the order of rows."""
        if self.count == 1:
            return output
        return f"{output}.part-{self.number:05d}-of-{self.count:05d}"


WHOLE = Part()


def export_checkpoint(
    store: ObjectStore,
    manifest: Manifest,
    output: Path,
    *,
    table: str | None,
    ids: Ids | None = None,
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
        on_bytes: is told the bytes of each strip that has been read.

    Returns the tensors written. Raises CheckpointError, where there is no such table or the
    checkpoint is damaged. What it holds in memory: see `write_by_id`. Not collective.
    """
    names = _names(manifest, table)
    reader = CheckpointReader(store, manifest)
    reader.check_complete()  # before a file of the size that the manifest says is made
    header: dict[str, Any] = {"__metadata__": {"step": str(manifest.step)}}
    offset = 0
    places: dict[str, int] = {}
    written: dict[str, TensorInfo] = {}
    for name, saved in names.items():
        info = manifest.tensors[saved]
        if ids is not None:
            info = info.model_copy(update={"shape": [len(ids), *info.shape[1:]]})
        size = math.prod(info.shape[1:] or [1]) * info.num_rows
        size *= row_bytes(info) // max(1, math.prod(info.shape[1:]))
        written[name] = info
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
        # With its blocks: a disk without room for them is found before anything is read.
        os.posix_fallocate(file.fileno(), 0, len(prefix) + offset)
        for name, saved in names.items():
            _write_tensor(file.fileno(), len(prefix) + places[name], reader, saved, ids, on_bytes)
    return written


def _names(manifest: Manifest, table: str | None) -> dict[str, str]:
    """Name in the file → name in the checkpoint."""
    if table is None:
        return {
            name: name
            for name in manifest.tensors
            if name.startswith("model.") or (name.startswith("table.") and name.endswith(".weight"))
        }
    manifest.rows_of(table)
    return {"weight": f"table.{table}.weight"}


def _write_tensor(
    handle: int,
    offset: int,
    reader: CheckpointReader,
    name: str,
    ids: Ids | None,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """Write one tensor at ``offset``: a table's rows in the order of ids, others as they are."""
    info = reader.manifest.tensors[name]
    per_row = row_bytes(info)
    if name.startswith("table."):
        table = name.removeprefix("table.").removesuffix(".weight")
        multiplier = RowOrder(reader.manifest.rows_of(table).num_rows).multiplier
        if multiplier != reader.manifest.row_multipliers[table]:
            step = reader.manifest.step
            raise CheckpointError(f"{name} of step {step} was written with another order of rows")
        wanted = range(info.num_rows) if ids is None else ids
        write_by_id(handle, offset, reader, name, wanted, on_bytes)
        return
    strip_rows = max(1, STRIP_BYTES // max(1, per_row))
    for first in range(0, info.num_rows if per_row else 0, strip_rows):
        count = min(strip_rows, info.num_rows - first)
        data = byte_view(reader.rows(name, first, count))
        os.pwrite(handle, data, offset + first * per_row)
        if on_bytes:
            on_bytes(len(data))

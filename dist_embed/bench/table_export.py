"""A table of a checkpoint into one file in the order of ids: how fast, and what is written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.checkpoint.by_id import STRIP_BYTES
from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.export import Part, export_checkpoint
from dist_embed.checkpoint.manifest import Manifest
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.state import LiveTensor
from dist_embed.checkpoint.write import (
    Description,
    manifest_of,
    new_attempt,
    publish,
    write_rows,
)
from dist_embed.embedding.row_order import RowOrder
from dist_embed.errors import RunFailed
from dist_embed.installed import require
from dist_embed.storage.objects import ObjectStore

_TABLE = "table.words.weight"


def measure_table_export(
    folder: str, *, num_rows: int, width: int, parts: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds, memory beyond what the process held, and bytes written by each way, in turns.

    The ways: the table ``read and proven`` in strips, its bytes ``written`` one after the other,
    the ``export``; the export with ``no cache`` between strips: what it has written of the file is
    written out and dropped after each, as where the file is far larger than memory; and one of
    ``parts`` parts. Bytes written are those of pages that the system was to write out for this
    process (``write_bytes`` of /proc/self/io).

    Args:
        folder: for a checkpoint and a file of the table's size.
        num_rows: of the table, float32.
        width: D.
        parts: see above.
        rounds: how often each way is measured.
        say: takes lines.

    Raises RunFailed where an export does not hold what was saved.
    """
    require("safetensors")
    from safetensors import safe_open

    store, manifest = _checkpoint(folder, num_rows, width)
    size = 4 * num_rows * width
    output = Path(folder) / "words"

    def read() -> None:
        reader = CheckpointReader(store, manifest)
        strip = max(1, STRIP_BYTES // (4 * width))
        for first in range(0, num_rows, strip):
            reader.rows(_TABLE, first, min(strip, num_rows - first))

    def write() -> None:
        block = bytes(min(size, STRIP_BYTES))
        with open(output, "wb") as file:
            for start in range(0, size, len(block)):
                file.write(block[: size - start])
            file.flush()
            os.fsync(file.fileno())

    def export(part: Part, on_bytes: Callable[[int], None] | None = None) -> None:
        ids = part.rows(num_rows)
        export_checkpoint(store, manifest, output, table="words", ids=ids, on_bytes=on_bytes)
        with safe_open(str(output), "pt") as file:
            rows = file.get_slice("weight")
            for place in range(0, len(ids), max(1, len(ids) // 100)):
                if not bool((rows[place] == ids[place] % 2**24).all()):
                    raise RunFailed(f"row {place:,} of the export is not that of id {ids[place]:,}")

    whole, last = Part(), Part(parts, parts)
    ways: dict[str, Callable[[], None]] = {
        "read and proven": read,
        "written": write,
        "export": lambda: export(whole),
        "export, no cache": lambda: export(whole, lambda _: _drop(output)),
        f"part {parts} of {parts}": lambda: export(last),
    }
    found: dict[str, dict[str, list[float]]] = {
        way: {"seconds": [], "extra_bytes": [], "written_bytes": []} for way in ways
    }
    for _ in range(rounds):
        for way, act in ways.items():
            output.unlink(missing_ok=True)
            resident, written, began = reset_peak(), _written_bytes(), time.perf_counter()
            act()
            seconds = time.perf_counter() - began
            found[way]["seconds"].append(seconds)
            found[way]["extra_bytes"].append(peak_bytes() - resident)
            found[way]["written_bytes"].append(_written_bytes() - written)
            say(f"  {way}: {seconds:.2f} s")
    return {"rows": num_rows, "width": width, "parts": parts, "table_bytes": size, "ways": found}


def _checkpoint(folder: str, num_rows: int, width: int) -> tuple[ObjectStore, Manifest]:
    """One of a table whose every row is full of its id, modulo 2²⁴."""
    order, store = RowOrder(num_rows), open_checkpoints(folder)
    values = order.ids_of(torch.arange(num_rows)) % 2**24
    table = values.float().unsqueeze(1).repeat(1, width)
    info = {_TABLE: LiveTensor.whole(table).info}
    description = Description(1, "", info, {"words": order.multiplier}, json.dumps({}))
    attempt = new_attempt(1)
    indexes = write_rows(store, attempt, [Rows(_TABLE, 0, table)], 0)
    manifest = manifest_of(description, attempt, 1, indexes)
    publish(store, manifest)
    return store, manifest


def _drop(output: Path) -> None:
    """Write out what there is of the file to be, and drop it from the system's cache."""
    for path in output.parent.glob(f".{output.name}.*"):
        handle = os.open(path, os.O_RDWR)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _written_bytes() -> int:
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes:"))

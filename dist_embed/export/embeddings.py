"""A table of a trained run as a file that other programs read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dist_embed.arguments import one_of
from dist_embed.checkpoint.export import WHOLE, Part, export_checkpoint
from dist_embed.errors import UserError
from dist_embed.explore.table import RunTable
from dist_embed.storage import uri as storage
from dist_embed.storage.temporary import temporary_folder
from dist_embed.storage.trials import check_new_file
from dist_embed.vectors.write import (
    Block,
    WrittenFormat,
    as_line,
    check_uncompressed,
    write_vectors,
)

ExportFormat = Literal["word2vec", "word2vec-bin", "glove", "safetensors", "parquet"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
_BLOCK_BYTES = 8 * 2**20


def export_embeddings(
    table: RunTable, output: str, format: ExportFormat, part: Part = WHOLE
) -> list[str]:
    """Write the words of a table and their vectors, in the order of their ids.

    Every word of the vocabulary that is `RunTable.trained` is written, special tokens too; hashed
    rows have no word and are not. ``safetensors`` holds them as the matrix ``weight``, with the
    list of words in a file beside it; of all words row i is that of id i. The others bring the
    rows into the order of ids first, in a temporary folder, beside the output where that is local:
    twice the room on the disk; in memory what `write_by_id` holds.

    Of several parts each has a file of its own, which holds a range of the words. Those of word2vec
    and GloVe are one file when their bytes are joined; those of safetensors and Parquet are files
    in their own right. Each reads every block of the table, as its rows lie in all of them.

    Args:
        table: the table.
        output: a local path, in a folder that is there; a URL for other formats than safetensors.
        format: of `EXPORT_FORMATS`.
        part: which words are written.

    Returns the files written. Raises UserError, OSError.
    """
    one_of("format", format, EXPORT_FORMATS)
    if format != "safetensors":
        check_uncompressed(output)
    output = part.name(output)
    check_new_file(output, "output")
    ids = np.flatnonzero(table.trained)
    num_words, own = len(ids), part.rows(len(ids))
    ids = ids[own.start : own.stop]
    if format == "safetensors":
        if not storage.is_local(output):
            raise UserError(f"{output}: safetensors are written to a local path")
        path = storage.local_path(output)
        if table.num_rows != table.num_words:
            raise UserError(
                f"{output}: table {table.table} has {table.num_rows - table.num_words:,} hashed "
                "rows, which have no word; `export checkpoint --table` writes them all"
            )
        export_checkpoint(table.store, table.manifest, path, table=table.table, ids=ids)
        words = f"{output.removesuffix('.safetensors')}.words.txt"
        with storage.whole_file(words) as file:
            for i in ids.tolist():
                file.write(b"%b\n" % as_line(table.word(i), words))
        return [output, words]
    written: WrittenFormat = format
    folder = storage.local_path(output).parent if storage.is_local(output) else None
    with temporary_folder(".dist_embed-export-", folder) as scratch:
        path = Path(scratch) / "rows.safetensors"
        export_checkpoint(table.store, table.manifest, path, table=table.table, ids=ids)
        write_vectors(
            output, written, _blocks(table, path, ids, written), num_words=num_words,
            width=table.width, goes_on=part.number > 1,
        )  # fmt: skip
    return [output]


def _blocks(
    table: RunTable, path: Path, ids: NDArray[np.int64], format: WrittenFormat
) -> Iterator[Block]:
    counts = word_counts(table) if format == "parquet" else np.zeros(table.num_words, np.int64)
    per_block = max(1, _BLOCK_BYTES // (4 * table.width))
    with open(path, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(header)
        for first in range(0, len(ids), per_block):
            some = ids[first : first + per_block]
            raw = file.read(len(some) * table.width * table.itemsize)
            values = np.frombuffer(raw, dtype=f"<f{table.itemsize}").astype(np.float32)
            yield Block(
                [table.word(i) for i in some.tolist()], counts[some],
                values.reshape(-1, table.width), some,
            )  # fmt: skip
            # What has been read is not needed in the system's cache.
            os.posix_fadvise(file.fileno(), header, file.tell() - header, os.POSIX_FADV_DONTNEED)


def word_counts(table: RunTable) -> NDArray[np.int64]:
    """How often each word occurs in the training data, on the table's side; 0 where that is gone.

    Raises UserError where the folder holds other data by now, or cannot be read, or its counts are
    damaged.
    """
    found = table.occurrences
    if found.refused:
        raise UserError(
            f"{found.refused}, so that its words' counts are not known: move it away, and they are "
            "written as 0, or export to a format without counts (word2vec, glove, safetensors)"
        )
    return np.zeros(table.num_words, np.int64) if found.on_side is None else found.on_side

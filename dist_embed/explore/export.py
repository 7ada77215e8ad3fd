"""A table of a trained run as a file that other programs read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dist_embed.checkpoint.export import export_checkpoint
from dist_embed.config.errors import UserError
from dist_embed.data.prepare import read_counts
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.token_shards import PreparedData
from dist_embed.explore.table import RunTable
from dist_embed.storage import uri as storage
from dist_embed.storage.temporary import temporary_folder
from dist_embed.train.run_folder import OtherVocabulary, check_vocabularies, read_run_config
from dist_embed.train.single_tables import SIDE_OF_ROLE
from dist_embed.vectors.write import (
    WRITTEN_FORMATS,
    Block,
    WrittenFormat,
    write_vectors,
)

ExportFormat = Literal["word2vec", "word2vec-bin", "glove", "safetensors", "parquet"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
_BLOCK_BYTES = 8 * 2**20


def export_embeddings(table: RunTable, output: str, format: ExportFormat) -> list[str]:
    """Write the words of a table and their vectors, in the order of their ids.

    Every word of the vocabulary is written, special tokens too; hashed rows have no word and are
    not. ``safetensors`` holds them as the matrix ``weight``, row i for id i, with the list of words
    in a file beside it. The others read a checkpoint in the order of its rows first, into a
    temporary folder, beside the output where that is local: twice the room on the disk, a strip of
    rows in memory.

    Args:
        table: the table.
        output: a local path; a URL for other formats than safetensors.
        format: of `EXPORT_FORMATS`.

    Returns the files written. Raises UserError, OSError.
    """
    if format == "safetensors":
        if not storage.is_local(output):
            raise UserError(f"{output}: safetensors are written to a local path")
        path = storage.local_path(output)
        if table.num_rows != table.num_words:
            raise UserError(
                f"{output}: table {table.table} has {table.num_rows - table.num_words:,} hashed "
                "rows, which have no word; `checkpoint export --table` writes them all"
            )
        export_checkpoint(table.store, table.manifest, path, table=table.table)
        words = f"{output.removesuffix('.safetensors')}.words.txt"
        with storage.whole_file(words) as file:
            for i in range(table.num_words):
                file.write(f"{table.word(i)}\n".encode())
        return [output, words]
    assert format in WRITTEN_FORMATS
    written: WrittenFormat = format
    folder = storage.local_path(output).parent if storage.is_local(output) else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(".dist_embed-export-", folder) as scratch:
        path = Path(scratch) / "rows.safetensors"
        export_checkpoint(table.store, table.manifest, path, table=table.table)
        write_vectors(
            output, written, _blocks(table, path, written), num_words=table.num_words,
            width=table.width,
        )  # fmt: skip
    return [output]


def _blocks(table: RunTable, path: Path, format: WrittenFormat) -> Iterator[Block]:
    counts = word_counts(table) if format == "parquet" else np.zeros(table.num_words, np.int64)
    per_block = max(1, _BLOCK_BYTES // (4 * table.width))
    with open(path, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(header)
        for first in range(0, table.num_words, per_block):
            end = min(first + per_block, table.num_words)
            raw = file.read((end - first) * table.width * table.itemsize)
            values = np.frombuffer(raw, dtype=f"<f{table.itemsize}").astype(np.float32)
            yield Block(
                [table.word(i) for i in range(first, end)], counts[first:end],
                values.reshape(-1, table.width),
            )  # fmt: skip
            # What has been read is not needed in the system's cache.
            os.posix_fadvise(file.fileno(), header, file.tell() - header, os.POSIX_FADV_DONTNEED)


def word_counts(table: RunTable) -> NDArray[np.int64]:
    """How often each word occurs in the training data; 0 where that is gone.

    Raises UserError where the folder holds other data by now, or its counts are damaged.
    """
    data_uri = prepared_folder(read_run_config(table.run_uri).data.uri)
    try:
        data = PreparedData.read(data_uri)
        check_vocabularies(table.run_uri, data)
        if told := data.not_proven(data_uri):
            print(told, file=sys.stderr)
        return read_counts(data_uri, SIDE_OF_ROLE[table.role])
    except FileNotFoundError:
        return np.zeros(table.num_words, dtype=np.int64)
    except OtherVocabulary:
        raise UserError(
            f"{data_uri} holds other data by now than the run {table.run_uri} was trained on, so "
            "that its words' counts are not known: move it away, and they are written as 0, or "
            "export to a format without counts (word2vec, glove, safetensors)"
        ) from None

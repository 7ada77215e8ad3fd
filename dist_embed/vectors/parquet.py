"""Vectors as rows of a Parquet file: a column of words and one of lists of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dist_embed.storage.compressed import READ_ERRORS
from dist_embed.storage.parquet import ParquetError, ParquetReader
from dist_embed.vectors.file import BLOCK_BYTES, HeldSegment, VectorFileError, Vectors, readable
from dist_embed.vectors.stream import open_stream


class ParquetVectors:
    """A Parquet file; see `dist_embed.vectors.file.VectorFile`.

    Its columns are ``word`` and ``vector``, as ``dist-embed export`` names them; else the only one
    of texts and the only one of lists of numbers.

    Args:
        uri: the file.

    Raises:
        VectorFileError: it cannot be read, or has no such columns.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.doubt: str | None = None
        with open_stream(uri, read_ahead=False) as file:
            if not file.seekable():
                raise VectorFileError(
                    f"{uri}: Parquet within a compressed file is not read: unpack it"
                )
            reader = self._reader(file)
            self._columns = [
                self._column(reader.schema, "word", _holds_text, "texts"),
                self._column(
                    reader.schema, "vector", _holds_numbers, "lists of floating-point numbers"
                ),
            ]
            self._group_rows = reader.group_rows
            self.num_stated: int | None = sum(self._group_rows)
            kind = reader.schema.field(self._columns[1]).type
            self.width = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
            if not self.width and self.num_stated:
                group = next(place for place, rows in enumerate(self._group_rows) if rows)
                first = next(self._batches(reader, group, 1)).column(1)
                self.width = len(first[0].as_py() or ())
        if not self.width:
            raise VectorFileError(f"{uri}: holds no vectors")

    def segments(self, part: int, num_parts: int) -> Iterator[HeldSegment]:
        """See `VectorFile.segments`: every ``num_parts``-th row group."""
        first = np.cumsum([0, *self._group_rows]).tolist()
        at_once = max(1, BLOCK_BYTES // (4 * self.width))
        with open_stream(self.uri, read_ahead=False) as file:
            reader = self._reader(file)
            for group in range(part, len(self._group_rows), num_parts):
                origin = first[group]
                for batch in self._batches(reader, group, at_once):
                    words = [readable(text or b"") for text in _as_bytes(batch.column(0))]
                    yield HeldSegment(self.uri, origin, words, self._rows(batch.column(1), origin))
                    origin += len(words)

    def _rows(self, lists: pa.Array, origin: int) -> Vectors:
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(lists)
        wrong = lengths != self.width
        if wrong.any() or values.null_count:
            place = int(wrong.argmax())
            raise VectorFileError(
                f"{self.uri}, row {origin + place + 1}: expected {self.width} numbers"
                + (f", found {lengths[place]}" if wrong.any() else ", or one behind it has none")
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
            found: Vectors = values.to_numpy(zero_copy_only=False).astype(np.float32)
        return found.reshape(-1, self.width)

    def _reader(self, file: Any) -> ParquetReader:
        try:
            reader = ParquetReader(file)
            reader.check_held(file)
            return reader
        except (ParquetError, *READ_ERRORS) as exc:
            raise VectorFileError(f"cannot read {self.uri}: {exc}") from exc

    def _batches(self, reader: ParquetReader, group: int, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from reader.batches(self._columns, rows=rows, group=group)
        except (ParquetError, *READ_ERRORS) as exc:
            raise VectorFileError(f"cannot read {self.uri}: {exc}") from exc

    def _column(
        self, schema: pa.Schema, name: str, fits: Callable[[pa.DataType], bool], what: str
    ) -> str:
        found: list[str] = [field.name for field in schema if fits(field.type)]
        if name in found or len(found) == 1:
            return name if name in found else found[0]
        raise VectorFileError(
            f"{self.uri}: expected a column {name!r}, or one column of {what}; it has "
            + ", ".join(f"{field.name} ({field.type})" for field in schema)
        )


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # as pandas' categories become
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )  # fmt: skip


def _as_bytes(texts: pa.Array) -> list[bytes | None]:
    if isinstance(texts, pa.DictionaryArray):
        texts = texts.dictionary_decode()
    found: list[bytes | None] = texts.cast(pa.large_binary()).to_pylist()
    return found


def _holds_numbers(kind: pa.DataType) -> bool:
    lists = (
        pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list,
        pa.types.is_list_view, pa.types.is_large_list_view,
    )  # fmt: skip
    return any(is_one(kind) for is_one in lists) and pa.types.is_floating(kind.value_type)

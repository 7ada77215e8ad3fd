"""Pairs in columns of Parquet, also within structs and maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dist_embed.data.text.rows import (
    Column,
    CorpusError,
    Pair,
    WrongRow,
    cell,
    listed,
    names_alone,
    nested,
    too_long,
)
from dist_embed.storage.parquet import ParquetError, ParquetReader

# Of a batch: its rows, so many that a text of 10 MB fits which is stored once and used in all; and
# its size, where rows are alike.
_ROWS = 64
_BATCH_BYTES = 2**26
_READ_AT_ONCE = 2**20

_IS_TEXT = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip


def parquet_pairs(
    file: IO[bytes], name: str, columns: tuple[Column, Column], limit: int
) -> Iterator[Pair | WrongRow]:
    """Pairs of an open file that messages call ``name``.

    ``columns`` are names, in a struct or a map of languages ``translation.en``; of strings or of
    bytes in UTF-8. A missing value is empty text. Raises CorpusError, Bomb.
    """
    wanted = names_alone(name, columns)
    try:
        reader = ParquetReader(file, at_once=_READ_AT_ONCE)
        reader.check_held(file)
        found = [_found(name, reader.schema, one) for one in wanted]
        tops, read = dict.fromkeys(top for top, _ in found), [path for _, path in found]
        rows = max(1, min(_ROWS, _BATCH_BYTES // max(1, reader.row_bytes())))
        number = 0
        for batch in reader.batches(read, rows=rows):
            values = {top: batch.column(top) for top in tops}
            has_long = max(map(_longest, values.values())) > limit
            for place in range(len(batch)):
                number += 1
                try:
                    if has_long and any(
                        _longest(v[place : place + 1]) > limit for v in values.values()
                    ):
                        raise ValueError(too_long(limit))
                    row = {top: some[place].as_py() for top, some in values.items()}
                    source, target = (cell(nested(row, one), limit) for one in wanted)
                    yield source, target
                except ValueError as exc:
                    yield WrongRow(f"{name}, row {number}: {exc}")
    except (ParquetError, pa.ArrowException) as exc:
        raise CorpusError(f"cannot read {name}: {' '.join(str(exc).split())}") from exc


def _found(name: str, schema: pa.Schema, wanted: str) -> tuple[str, str]:
    """The column that ``wanted`` is in, and the path of what is to be read of it: a field of a
    struct alone, of a map all. Raises CorpusError where there is no such text.
    """
    top = wanted if wanted in schema.names else wanted.partition(".")[0]
    if (there := schema.names.count(top)) > 1:
        raise CorpusError(f"{name}: {there} columns {top!r}")
    path, rest = top, wanted[len(top) + 1 :]
    kind = schema.field(top).type if there else None
    while rest and kind is not None and pa.types.is_struct(kind):
        step = rest if kind.get_field_index(rest) >= 0 else rest.partition(".")[0]
        path, rest = f"{path}.{step}", rest[len(step) + 1 :]
        kind = kind.field(step).type if kind.get_field_index(step) >= 0 else None
    if rest and kind is not None and pa.types.is_map(kind):
        kind, rest = kind.item_type, ""
    if kind is None or rest:
        raise CorpusError(f"{name}: no column {wanted!r}; there are {listed(_names(schema))}")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_text(kind) for is_text in _IS_TEXT):
        raise CorpusError(f"{name}: column {wanted!r} holds {kind}, not text")
    return top, path


def _longest(values: pa.Array) -> int:
    """Bytes of the longest text in it, found without a copy of one: a scalar is a copy."""
    kind = values.type
    if pa.types.is_struct(kind):
        return max(map(_longest, values.flatten()), default=0)
    if pa.types.is_map(kind):
        first, end = values.offsets[0].as_py(), values.offsets[-1].as_py()
        return max(_longest(some[first:end]) for some in (values.keys, values.items))
    if pa.types.is_dictionary(kind):
        used = values.indices.drop_null().unique().to_pylist()
        return max((_longest(values.dictionary[one : one + 1]) for one in used), default=0)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        # Each is 16 bytes, of which the first four are its length; pyarrow 26 cannot ask for it.
        lengths = np.frombuffer(values.buffers()[1], "<i4")[::4]
        return int(lengths[values.offset : values.offset + len(values)].max(initial=0))
    if any(is_text(kind) for is_text in _IS_TEXT):
        return pc.max(pc.binary_length(values)).as_py() or 0
    return 0


def _names(fields: Iterable[pa.Field]) -> list[str]:
    """As they are given in a configuration."""
    names: list[str] = []
    for field in fields:
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{inner}" for inner in _names(field.type)]
        else:
            names.append(f"{field.name}.KEY" if pa.types.is_map(field.type) else field.name)
    return names

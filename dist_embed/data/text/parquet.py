"""Pairs in columns of Parquet, also within structs and maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

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

_IS_TEXT = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
)  # fmt: skip


def parquet_pairs(
    file: IO[bytes], name: str, columns: tuple[Column, Column], limit: int
) -> Iterator[Pair | WrongRow]:
    """Pairs of an open file that messages call ``name``.

    ``columns`` are names, in a struct or a map of languages ``translation.en``; of strings or of
    bytes in UTF-8. A missing value is empty text. Raises CorpusError.
    """
    wanted = names_alone(name, columns)
    try:
        reader = ParquetReader(file)
        found = [_found(name, reader.schema, one) for one in wanted]
        tops, read = dict.fromkeys(top for top, _ in found), [path for _, path in found]
        rows = max(1, min(_ROWS, _BATCH_BYTES // max(1, reader.row_bytes())))
        number = 0
        for batch in reader.batches(read, rows=rows):
            for values in zip(*(batch.column(top) for top in tops), strict=True):
                number += 1
                try:
                    row = {top: _value(one, limit) for top, one in zip(tops, values, strict=True)}
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


def _value(scalar: pa.Scalar, limit: int) -> Any:
    """As Python has it. Raises ValueError where a text is too long, before it is copied."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(one, limit) for name, one in scalar.items()}
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value, limit)
    if isinstance(scalar, pa.BinaryScalar) and scalar.as_buffer().size > limit:
        raise ValueError(too_long(limit))
    return scalar.as_py()


def _names(fields: Iterable[pa.Field]) -> list[str]:
    """As they are given in a configuration."""
    names: list[str] = []
    for field in fields:
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{inner}" for inner in _names(field.type)]
        else:
            names.append(f"{field.name}.KEY" if pa.types.is_map(field.type) else field.name)
    return names

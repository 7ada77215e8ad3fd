"""Parquet files: the only place of the project that reads or writes them.

Everything happens in the calling thread. pyarrow's other ways to read (``read_table``, data sets,
and ``ParquetFile`` with its defaults ``pre_buffer`` and ``use_threads``) let threads of Arrow hold
the Python object that they read from. One that lets go of it while the interpreter ends aborts the
process, exit code 134 after all work was done: 6 of 120 short processes with ``read_table``
(pyarrow 26.0.1, Python 3.11). Columns decoded one after the other took no longer.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_embed.storage import uri as storage


class ParquetError(ValueError):
    """What was read is no Parquet file, is damaged, or has not the columns that are wanted."""


class ParquetReader:
    """An open file.

    Args:
        file: stays open while it is read.

    Attributes:
        schema: the columns' names and types.

    Raises ParquetError.
    """

    def __init__(self, file: IO[bytes]) -> None:
        with _errors_of_arrow():
            self._file = pq.ParquetFile(file, pre_buffer=False)
            self.schema: pa.Schema = self._file.schema_arrow

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The named columns, or all. Raises ParquetError."""
        names = self._known(columns)
        with _errors_of_arrow():
            return self._file.read(names, use_threads=False)

    def batches(self, columns: Sequence[str], *, rows: int) -> Iterator[pa.RecordBatch]:
        """The named columns, at most ``rows`` rows at a time. Raises ParquetError."""
        names = self._known(columns)
        with _errors_of_arrow():
            yield from self._file.iter_batches(rows, columns=names, use_threads=False)

    def _known(self, columns: Sequence[str] | None) -> list[str]:
        # pyarrow leaves out without a word what is not there.
        names: list[str] = self.schema.names
        for name in columns or ():
            if name not in names:
                raise ParquetError(f"no column {name!r}; there are {', '.join(names) or 'none'}")
        return names if columns is None else list(columns)


def read_parquet(
    uri: str,
    columns: Sequence[str] | None = None,
    *,
    prove: Callable[[bytes], None] = lambda content: None,
) -> pa.Table:
    """The named columns of a whole file, or all. ``prove`` looks at its bytes before all else.

    Raises:
        FileNotFoundError, OSError: it cannot be fetched.
        ParquetError: what was fetched cannot be read.
    """
    content = storage.read_bytes(uri)
    prove(content)
    return ParquetReader(io.BytesIO(content)).read(columns)


def write_parquet(uri: str, table: pa.Table, *, compression: str = "snappy") -> bytes:
    """Write a whole file; returns its bytes. Raises OSError."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression)
    content = buffer.getvalue()
    storage.write_bytes(uri, content)
    return content


def parquet_writer(file: IO[bytes], schema: pa.Schema) -> Any:
    """The writer of record batches of pyarrow, for a ``with`` block."""
    return pq.ParquetWriter(file, schema)


@contextmanager
def _errors_of_arrow() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as exc:
        raise ParquetError(str(exc)) from exc

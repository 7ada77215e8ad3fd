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
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_embed.storage import uri as storage
from dist_embed.storage.bombs import check_held, size_of


class ParquetError(ValueError):
    """What was read is no Parquet file, is damaged, or has not the columns that are wanted."""


class ParquetReader:
    """An open file.

    Args:
        file: stays open while it is read.
        footer: its last bytes, as `row_groups` gives them; None: they are read from it.
        at_once: bytes of a column that are read at once; 0: all of a row group, which is one
            request where the file is in a store.

    Attributes:
        schema: the columns' names and types.

    Raises ParquetError.
    """

    def __init__(
        self, file: IO[bytes] | FilePart, footer: bytes | None = None, *, at_once: int = 0
    ) -> None:
        with _errors_of_arrow():
            metadata = None
            if footer is not None:
                metadata = pq.ParquetFile(io.BytesIO(footer), pre_buffer=False).metadata
            self._file = pq.ParquetFile(
                file, metadata=metadata, pre_buffer=False, buffer_size=at_once
            )
            self.schema: pa.Schema = self._file.schema_arrow

    @property
    def group_rows(self) -> list[int]:
        """How many rows each row group has."""
        found = self._file.metadata
        return [found.row_group(number).num_rows for number in range(found.num_row_groups)]

    def check_held(self, file: IO[bytes]) -> None:
        """Refuse a ``file`` of somebody else that holds far more than its size. Raises Bomb."""
        metadata = self._file.metadata
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        held = sum(max(0, one.total_byte_size) for one in groups)
        check_held(held, size_of(file) or 0, "write it without compression")

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The named columns, or all. Raises ParquetError."""
        names = self._known(columns)
        with _errors_of_arrow():
            return self._file.read(names, use_threads=False)

    def read_group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """The named columns of one row group. Raises ParquetError."""
        names = self._known(columns)
        with _errors_of_arrow():
            return self._file.read_row_group(number, columns=names, use_threads=False)

    def batches(
        self, columns: Sequence[str], *, rows: int, group: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The named columns, at most ``rows`` rows at a time, of all row groups or of one; of a
        struct ``a.b`` its field b alone, in a struct of its name. Raises ParquetError.
        """
        names, groups = self._known(columns), None if group is None else [group]
        with _errors_of_arrow():
            yield from self._file.iter_batches(rows, groups, columns=names, use_threads=False)

    def row_bytes(self) -> int:
        """What a row takes in the file, uncompressed: the mean of the row group that has most."""
        metadata = self._file.metadata
        # Not of the columns: to ask for one ends the process where a file is damaged ("Repetition
        # level histogram size mismatch", pyarrow 26.0.1, RowGroupMetaData.column).
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        return max(
            (max(0, one.total_byte_size) // max(1, one.num_rows) for one in groups), default=0
        )

    def _known(self, columns: Sequence[str] | None) -> list[str]:
        # pyarrow leaves out without a word what is not there.
        names: list[str] = self.schema.names
        for name in columns or ():
            if name not in names and name.partition(".")[0] not in names:
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


@dataclass(frozen=True)
class RowGroup:
    """Where some neighbouring columns of a row group lie in their file.

    Attributes:
        rows: how many it has.
        start: its first byte.
        end: behind its last one.
    """

    rows: int
    start: int
    end: int


def parquet_of_lists(table: pa.Table, lists: Sequence[str], *, rows: int) -> bytes:
    """The bytes of a file with row groups of ``rows`` rows, whose columns ``lists`` are lists of
    integers: their bytes are stored by place, which zstd makes more of than of whole numbers.
    """
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", row_group_size=rows, write_statistics=False,
        use_dictionary=False,
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in lists},
    )  # fmt: skip
    return buffer.getvalue()


def row_groups(content: bytes, columns: Sequence[str]) -> tuple[list[RowGroup], bytes]:
    """Where the neighbouring ``columns`` of each row group of a file lie, and the file's last
    bytes, which say so: the footer. Raises ParquetError.
    """
    with _errors_of_arrow():
        metadata = pq.ParquetFile(io.BytesIO(content), pre_buffer=False).metadata
        groups = []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            chunks = [group.column(place) for place in range(group.num_columns)]
            chunks = [c for c in chunks if c.path_in_schema.split(".")[0] in columns]
            starts = [c.dictionary_page_offset or c.data_page_offset for c in chunks]
            ends = [s + c.total_compressed_size for s, c in zip(starts, chunks, strict=True)]
            groups.append(RowGroup(group.num_rows, min(starts), max(ends)))
    return groups, content[-8 - int.from_bytes(content[-8:-4], "little") :]


class FilePart:
    """A file of which only ``content`` is here, which begins at byte ``start``: for a
    `ParquetReader` that is given the footer and reads no other part.
    """

    closed = False

    def __init__(self, start: int, content: bytes) -> None:
        self._start = start
        self._content = content
        self._place = 0

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """As of any file that ends with this part."""
        end = self._start + len(self._content)
        self._place = place + (0, self._place, end)[whence]
        return self._place

    def tell(self) -> int:
        """As of any file."""
        return self._place

    def read(self, count: int) -> bytes:
        """``count`` bytes. Raises OSError where they are not here."""
        first = self._place - self._start
        if first < 0 or first + count > len(self._content):
            raise OSError(f"{count} bytes at {self._place} are not among those that were read")
        self._place += count
        return self._content[first : first + count]

    def close(self) -> None:
        """Nothing is open."""


def parquet_writer(file: IO[bytes], schema: pa.Schema) -> Any:
    """The writer of record batches of pyarrow, for a ``with`` block."""
    return pq.ParquetWriter(file, schema)


@contextmanager
def _errors_of_arrow() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as exc:
        raise ParquetError(" ".join(str(exc).split())) from exc

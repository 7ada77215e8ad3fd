"""Vectors as a matrix (``.npy`` or ``.safetensors``) beside a list of words, one a line."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from dist_embed.data.scratch import scratch_folder
from dist_embed.storage.json_text import from_json
from dist_embed.storage.local_file import named
from dist_embed.vectors.file import BLOCK_BYTES, HeldSegment, VectorFileError, Vectors
from dist_embed.vectors.stream import go_to, is_packed, open_stream, read_up_to
from dist_embed.vectors.word_list import WordsOfRows, words_of

_MAX_HEADER_BYTES = 100 * 2**20
_NPY_HEADER_BYTES = 2**16 + 12
# Of a matrix in Fortran's order, whose columns are read one by one.
_COLUMNS_BLOCK_BYTES = 64 * 2**20
_BF16 = "bf16"  # numpy has no such type: the upper halves of float32
_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": _BF16}


@dataclass(frozen=True)
class _Matrix:
    """Where the values lie in the file.

    Attributes:
        first_byte: of the values.
        num_rows: V.
        width: D.
        type: as numpy writes it, or `_BF16`.
        by_columns: in Fortran's order.
    """

    first_byte: int
    num_rows: int
    width: int
    type: str
    by_columns: bool = False

    @property
    def itemsize(self) -> int:
        return 2 if self.type == _BF16 else np.dtype(self.type).itemsize

    @property
    def rows_at_once(self) -> int:
        block = _COLUMNS_BLOCK_BYTES if self.by_columns else BLOCK_BYTES
        return max(1, block // (self.width * self.itemsize))


class ArrayVectors:
    """A matrix file with a list of words; see `dist_embed.vectors.file.VectorFile`.

    Args:
        uri: the matrix; a compressed one is read by everyone from its beginning.
        format: of the matrix.
        words_uri: the words, one a line, in the order of the rows.
        tensor: which tensor of a safetensors file; None where it holds one matrix.

    Raises:
        VectorFileError: the file cannot be read or holds no such matrix.
    """

    def __init__(
        self,
        uri: str,
        format: Literal["npy", "safetensors"],
        words_uri: str,
        tensor: str | None = None,
    ) -> None:
        self.uri = uri
        self._words_uri = words_uri
        self._packed = is_packed(uri)
        with open_stream(uri) as file:
            if format == "npy":
                self._matrix = _npy_matrix(file, uri)
            else:
                self._matrix = _safetensors_matrix(file, uri, tensor)
        with open_stream(words_uri):  # told before anything is read
            pass
        self.width = self._matrix.width
        self.num_stated: int | None = self._matrix.num_rows
        self.doubt: str | None = None

    def segments(self, part: int, num_parts: int) -> Iterator[HeldSegment]:
        """See `VectorFile.segments`: every ``num_parts``-th group of rows.

        Columns of a compressed file are unpacked to the disk first, of each part its own rows.
        """
        matrix = self._matrix
        group = matrix.rows_at_once
        is_unpacked = matrix.by_columns and self._packed
        opened = self._unpacked(part, num_parts) if is_unpacked else self._as_it_lies()
        at = 0
        with open_stream(self._words_uri) as list_file, opened as (file, there):
            listed = words_of(list_file, self._words_uri)
            words_of_rows = WordsOfRows(listed, self._words_uri, self.uri)
            for number, first in enumerate(range(0, matrix.num_rows, group)):
                words = words_of_rows.take(min(group, matrix.num_rows - first))
                if number % num_parts == part:
                    if matrix.by_columns:
                        row = number // num_parts * group if is_unpacked else first
                        values = self._from_columns(file, there, row, len(words))
                    else:
                        values, at = self._rows(file, at, first, len(words))
                    yield HeldSegment(self.uri, first, words, values)
            words_of_rows.end()
            self.doubt = words_of_rows.doubt

    def _rows(self, file: IO[bytes], at: int, first: int, count: int) -> tuple[Vectors, int]:
        """``count`` rows from ``first`` on, read at byte ``at``; and the byte behind them."""
        per_row = self.width * self._matrix.itemsize
        begin = self._matrix.first_byte + first * per_row
        go_to(file, at, begin, self.uri, packed=self._packed)
        data = self._read(file, count * per_row, first + count)
        return _values(data, self._matrix.type).reshape(-1, self.width), begin + len(data)

    @contextmanager
    def _as_it_lies(self) -> Iterator[tuple[IO[bytes], _Matrix]]:
        with open_stream(self.uri, read_ahead=False) as file:
            yield file, self._matrix

    @contextmanager
    def _unpacked(self, part: int, num_parts: int) -> Iterator[tuple[IO[bytes], _Matrix]]:
        """The columns of a part's rows, in a temporary file. Raises UserError, OSError."""
        matrix, group = self._matrix, self._matrix.rows_at_once
        with scratch_folder("dist_embed-vectors-", f"columns of {self.uri} are unpacked") as folder:
            path = os.path.join(folder, "columns")
            with open_stream(self.uri) as packed, named(path), open(path, "wb") as file:
                go_to(packed, 0, matrix.first_byte, self.uri, packed=True)
                for _, first in product(range(matrix.width), range(0, matrix.num_rows, group)):
                    count = min(group, matrix.num_rows - first)
                    data = self._read(packed, count * matrix.itemsize, first + count)
                    if first // group % num_parts == part:
                        file.write(data)
                own_rows = file.tell() // (matrix.width * matrix.itemsize)
            with open(path, "rb") as file:
                yield file, replace(matrix, first_byte=0, num_rows=own_rows)

    def _from_columns(self, file: IO[bytes], matrix: _Matrix, first: int, count: int) -> Vectors:
        found = np.empty((count, self.width), dtype=np.float32)
        for column in range(self.width):
            file.seek(matrix.first_byte + matrix.itemsize * (column * matrix.num_rows + first))
            data = self._read(file, count * matrix.itemsize, first + count)
            found[:, column] = _values(data, matrix.type)
        return found

    def _read(self, file: IO[bytes], count: int, end_row: int) -> bytes:
        data = read_up_to(file, count, self.uri)
        if len(data) < count:
            raise VectorFileError(f"{self.uri}: ends before row {end_row}")
        return data


def _values(data: bytes, type: str) -> NDArray[np.float32]:
    if type == _BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # too large a float64 becomes what is refused as infinite
        return np.frombuffer(data, type).astype(np.float32)


def _npy_matrix(file: IO[bytes], uri: str) -> _Matrix:
    start = io.BytesIO(read_up_to(file, _NPY_HEADER_BYTES, uri))
    try:
        version = npy_format.read_magic(start)
        read: Any = (
            npy_format.read_array_header_1_0
            if version == (1, 0)
            else npy_format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of headers that Python 2 wrote
            shape, fortran_order, dtype = read(start)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as exc:
        raise VectorFileError(f"{uri}: not a .npy file: {exc}") from exc
    if dtype.hasobject:
        raise VectorFileError(
            f"{uri}: holds objects, pickled, which can run code: it is not read; save its matrix "
            "as numpy.save(FILE, numpy.stack(array).astype('float32'))"
        )
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1 or dtype.kind != "f" or dtype.itemsize > 8:
        raise VectorFileError(
            f"{uri}: holds {dtype} of shape {shape}; expected a matrix of float16, float32 or "
            "float64"
        )
    return _Matrix(start.tell(), shape[0], shape[1], dtype.str, bool(fortran_order))


def _safetensors_matrix(file: IO[bytes], uri: str, wanted: str | None) -> _Matrix:
    start = read_up_to(file, 8, uri)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES + 1
    try:
        if size > _MAX_HEADER_BYTES:
            raise ValueError("no header")
        header = from_json(read_up_to(file, size, uri))
        header.pop("__metadata__", None)
        matrices = {
            name: entry
            for name, entry in header.items()
            if len(entry["shape"]) == 2 and entry["dtype"] in _SAFETENSORS_TYPES
        }
        names = [wanted] if wanted in matrices else [] if wanted else list(matrices)
        if len(names) != 1:
            raise VectorFileError(
                f"{uri}: "
                + (f"no matrix {wanted!r}; " if wanted else "more than one matrix, name one; "
                   if names else "no matrix of floating-point numbers; ")
                + f"it holds {', '.join(header) or 'nothing'}"
            )  # fmt: skip
        entry = matrices[names[0]]
        if not all(type(one) is int and one >= 0 for one in entry["shape"] + entry["data_offsets"]):
            raise ValueError(
                f"{names[0]!r} has the shape {str(entry['shape'])[:80]} and the data_offsets "
                f"{str(entry['data_offsets'])[:80]}; both are whole numbers from 0"
            )
        rows, width = entry["shape"]
        begin, end = entry["data_offsets"]
        found = _Matrix(8 + size + begin, rows, width, _SAFETENSORS_TYPES[entry["dtype"]])
        if width < 1 or end - begin != math.prod((rows, width, found.itemsize)):
            raise ValueError(f"{names[0]!r} has {end - begin} bytes for {rows} × {width}")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise VectorFileError(f"{uri}: not a safetensors file: {exc}") from exc
    return found


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with ``head`` has a header as a safetensors file has."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _MAX_HEADER_BYTES

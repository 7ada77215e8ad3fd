"""Vectors as a matrix (``.npy`` or ``.safetensors``) beside a list of words, one a line."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from dist_embed.storage.compressed import READ_ERRORS
from dist_embed.storage.json_text import from_json
from dist_embed.vectors.file import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    HeldSegment,
    VectorFileError,
    decode_word,
)
from dist_embed.vectors.stream import go_to, open_stream, read_up_to

_MAX_HEADER_BYTES = 100 * 2**20
_NPY_HEADER_BYTES = 2**16 + 12
_TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class _Matrix:
    """Where the values lie in the file."""

    first_byte: int
    num_rows: int
    width: int
    dtype: torch.dtype


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
        with open_stream(uri) as file:
            if format == "npy":
                self._matrix = _npy_matrix(file, uri)
            else:
                self._matrix = _safetensors_matrix(file, uri, tensor)
        self.width = self._matrix.width
        self.num_stated: int | None = self._matrix.num_rows

    def segments(self, part: int, num_parts: int) -> Iterator[HeldSegment]:
        """See `VectorFile.segments`: every ``num_parts``-th group of rows."""
        matrix = self._matrix
        per_row = matrix.width * matrix.dtype.itemsize
        group = max(1, BLOCK_BYTES // per_row)
        first = number = 0
        with (
            open_stream(self._words_uri) as list_file,
            open_stream(self.uri, read_ahead=False) as file,
        ):
            passed = 0
            all_lines = _lines(list_file, self._words_uri)
            while lines := list(islice(all_lines, group)):
                if first + len(lines) > matrix.num_rows:
                    raise VectorFileError(
                        f"{self._words_uri}: more words than the {matrix.num_rows:,} rows of "
                        f"{self.uri}"
                    )
                if number % num_parts == part:
                    words = [
                        decode_word(line, f"{self._words_uri}, line {first + place + 1}")
                        for place, line in enumerate(lines)
                    ]
                    at = matrix.first_byte + first * per_row
                    go_to(file, passed, at, self.uri)
                    data = read_up_to(file, len(lines) * per_row, self.uri)
                    if len(data) < len(lines) * per_row:
                        raise VectorFileError(f"{self.uri}: ends before row {first + len(lines)}")
                    passed = at + len(data)
                    values = _values(data, matrix)
                    yield HeldSegment(self.uri, first, words, values)
                first += len(lines)
                number += 1
        if first < matrix.num_rows:
            raise VectorFileError(
                f"{self._words_uri}: {first:,} words for the {matrix.num_rows:,} rows of {self.uri}"
            )


def _values(data: bytes, matrix: _Matrix) -> NDArray[np.floating]:
    flat = torch.frombuffer(bytearray(data), dtype=matrix.dtype)
    return flat.reshape(-1, matrix.width).to(torch.float32).numpy()


def _npy_matrix(file: IO[bytes], uri: str) -> _Matrix:
    start = io.BytesIO(read_up_to(file, _NPY_HEADER_BYTES, uri))
    try:
        version = npy_format.read_magic(start)
        read: Any = (
            npy_format.read_array_header_1_0
            if version == (1, 0)
            else npy_format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read(start)
    except ValueError as exc:
        raise VectorFileError(f"{uri}: not a .npy file: {exc}") from exc
    if len(shape) != 2 or not shape[1] or fortran_order or dtype.str not in ("<f2", "<f4", "<f8"):
        order = " in Fortran order" if fortran_order else ""
        raise VectorFileError(
            f"{uri}: holds {dtype} of shape {shape}{order}; expected a matrix of float16, float32 "
            "or float64 in C order"
        )
    torch_type = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}[dtype.str]
    return _Matrix(start.tell(), shape[0], shape[1], torch_type)


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
            if len(entry["shape"]) == 2 and entry["dtype"] in _TORCH_TYPES
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
        dtype = _TORCH_TYPES[entry["dtype"]]
        rows, width = entry["shape"]
        begin, end = entry["data_offsets"]
        if rows < 0 or width < 1 or end - begin != math.prod((rows, width, dtype.itemsize)):
            raise ValueError(f"{names[0]!r} has {end - begin} bytes for {rows} × {width}")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise VectorFileError(f"{uri}: not a safetensors file: {exc}") from exc
    return _Matrix(8 + size + begin, rows, width, dtype)


def _lines(file: IO[bytes], uri: str) -> Iterator[bytes]:
    """The words; empty lines behind the last one are passed over."""
    empty = 0
    try:
        for number, line in enumerate(file):
            word = (line if number else line.removeprefix(BYTE_ORDER_MARK)).rstrip(b"\r\n")
            if not word:
                empty += 1
            elif empty:
                raise VectorFileError(f"{uri}, line {number + 1 - empty}: is empty, not a word")
            else:
                yield word
    except READ_ERRORS as exc:
        raise VectorFileError(f"cannot read {uri}: {exc}") from exc


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with ``head`` has a header as a safetensors file has."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _MAX_HEADER_BYTES

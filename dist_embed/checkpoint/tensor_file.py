"""Tensors in safetensors form: written whole, read whole or by ranges of rows."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.storage import uri as storage

_DTYPES = {
    "F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# The format's own limit for its JSON header.
MAX_HEADER_BYTES = 100_000_000


def encode(tensors: dict[str, Tensor]) -> bytes:
    """The file's bytes; CUDA tensors are copied to the host."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: list[int]
    start: int
    end: int


class TensorFile:
    """Reads tensors out of a safetensors file at any URI, only the bytes that are asked for."""

    def __init__(self, uri: str, size_bytes: int) -> None:
        self._uri = uri
        try:
            (header_size,) = struct.unpack("<Q", self._read(0, 8))
            if header_size > min(MAX_HEADER_BYTES, size_bytes):
                raise CheckpointError(f"{uri}: header of {header_size} bytes; file {size_bytes}")
            header: dict[str, Any] = json.loads(self._read(8, 8 + header_size))
            data = 8 + header_size
            self._places = {
                name: _Place(
                    _DTYPES[entry["dtype"]],
                    [int(n) for n in entry["shape"]],
                    data + int(entry["data_offsets"][0]),
                    data + int(entry["data_offsets"][1]),
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CheckpointError(f"cannot read {uri}: {exc!r}") from exc
        for name, place in self._places.items():
            needed = math.prod(place.shape) * place.dtype.itemsize
            if (
                min(place.shape, default=0) < 0
                or place.start < data
                or place.end - place.start != needed
            ):
                raise CheckpointError(f"{uri}: offsets of {name} do not fit its shape")
        if any(place.end > size_bytes for place in self._places.values()):
            raise CheckpointError(f"{uri}: shorter than its header says")

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._places)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        place = self._place(name)
        return self._to_tensor(name, place, place.start, place.end, place.shape)

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Rows ``first`` to ``first + count`` of a tensor."""
        place = self._place(name)
        if not place.shape or first < 0 or first + count > place.shape[0]:
            raise CheckpointError(f"{self._uri}: {name} has shape {place.shape}")
        row_bytes = (place.end - place.start) // max(1, place.shape[0])
        start = place.start + first * row_bytes
        shape = [count, *place.shape[1:]]
        return self._to_tensor(name, place, start, start + count * row_bytes, shape)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise CheckpointError(f"{self._uri}: holds no tensor {name!r}")
        return self._places[name]

    def _to_tensor(
        self, name: str, place: _Place, start: int, end: int, shape: list[int]
    ) -> Tensor:
        if end == start:
            return torch.empty(shape, dtype=place.dtype)
        try:
            return torch.frombuffer(bytearray(self._read(start, end)), dtype=place.dtype).view(
                shape
            )
        except (OSError, RuntimeError, ValueError) as exc:
            raise CheckpointError(f"cannot read {name} of {self._uri}: {exc}") from exc

    def _read(self, start: int, end: int) -> bytes:
        data = storage.read_range(self._uri, start, end)
        if len(data) != end - start:
            raise CheckpointError(f"{self._uri}: ends before byte {end}")
        return data

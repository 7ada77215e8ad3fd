"""What a checkpoint is taken of and loaded into: live tensors by name, and plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dist_embed.checkpoint.chunk import Rows, dtype_name
from dist_embed.checkpoint.manifest import TensorInfo
from dist_embed.parallel.group import Group


@dataclass(frozen=True)
class LiveTensor:
    """This worker's part of a tensor; written in place when a checkpoint is loaded.

    Attributes:
        data: [R, ...] the rows held here, or a single value.
        first_row: number of the first of them in the whole tensor.
        num_rows: rows of the whole tensor.
        replicated: whether every worker holds all rows, equal on all.
    """

    data: Tensor
    first_row: int
    num_rows: int
    replicated: bool

    @classmethod
    def whole(cls, data: Tensor) -> LiveTensor:
        """A tensor that every worker holds."""
        return cls(data, 0, data.shape[0] if data.dim() else 1, replicated=True)

    @property
    def info(self) -> TensorInfo:
        """The whole tensor."""
        shape = [self.num_rows, *self.data.shape[1:]] if self.data.dim() else []
        return TensorInfo(dtype=dtype_name(self.data.dtype), shape=shape)


@dataclass(frozen=True)
class Fixed:
    """What a run may not change.

    Attributes:
        value: is saved among the scalars.
        otherwise: says of a checkpoint, whose value it is given, why it is not used; the end of a
            message.
    """

    value: str
    otherwise: Callable[[str], str]


@dataclass
class TrainingState:
    """All that a run needs to go on.

    Attributes:
        group: this worker and its peers.
        step: optimizer steps done.
        tensors: model, tables and optimizers' state; the same names in the same order everywhere.
        row_multipliers: for each table m of ``row = (id * m) mod rows``.
        scalars: counters, the loader's position, metrics.
        fingerprint: of the settings that decide what a step does.
        must_equal: by name; a checkpoint that was saved with another value does not fit, one that
            has none does.
        before_reading: brings tensors up to date whose newest values lie elsewhere, in a cache.
        after_writing: is told that the tensors have other values now.
    """

    group: Group
    step: int
    tensors: dict[str, LiveTensor]
    row_multipliers: dict[str, int] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    must_equal: dict[str, Fixed] = field(default_factory=dict)
    before_reading: Callable[[], None] = lambda: None
    after_writing: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.scalars |= self.fixed_scalars

    @property
    def fixed_scalars(self) -> dict[str, str]:
        """What is saved of `must_equal`."""
        return {name: fixed.value for name, fixed in self.must_equal.items()}


def owners(state: TrainingState) -> dict[str, int]:
    """For each replicated tensor the worker that writes and reads it: dealt by bytes, the same on
    every worker.
    """
    replicated = {name: t.data.nbytes for name, t in state.tensors.items() if t.replicated}
    total = max(1, sum(replicated.values()))
    found: dict[str, int] = {}
    before, num_workers = 0, state.group.num_workers
    for name, size in replicated.items():
        # What has no bytes may come after all that have.
        found[name] = min(before * num_workers // total, num_workers - 1)
        before += size
    return found


def own_rows(state: TrainingState) -> list[Rows]:
    """What this worker writes and reads: its rows of split tensors, and its share of the replicated
    ones, see `owners`.
    """
    owner = owners(state)
    return [
        Rows(name, tensor.first_row, tensor.data)
        for name, tensor in state.tensors.items()
        if owner.get(name, state.group.rank) == state.group.rank
    ]


class HostBuffers:
    """Host memory for this worker's rows, kept from one use to the next.

    A load reads into it, then every save copies into it: memory that has not been touched yet can
    take longer to get than to fill.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copies(self, rows: list[Rows]) -> list[Rows]:
        """Copies of ``rows``; valid until the next call."""
        copied = self.unfilled(rows)
        for r, copy in zip(rows, copied, strict=True):
            copy.data.copy_(r.data.detach(), non_blocking=True)
        if any(r.data.device.type == "cuda" for r in rows):
            torch.cuda.synchronize()
        return copied

    def unfilled(self, rows: list[Rows]) -> list[Rows]:
        """Rows like ``rows``, with any content; valid until the next call."""
        for r in rows:
            buffer = self._buffers.get(r.tensor)
            if buffer is None or (buffer.shape, buffer.dtype) != (r.data.shape, r.data.dtype):
                pinned = r.data.device.type == "cuda"
                buffer = torch.empty(r.data.shape, dtype=r.data.dtype, pin_memory=pinned)
                self._buffers[r.tensor] = buffer
        return [Rows(r.tensor, r.first_row, self._buffers[r.tensor]) for r in rows]

"""What a checkpoint consists of.

    manifest    one per checkpoint, written last: step, tensors, digests of the indexes
      index     a few per worker: its chunks, digests of their blocks, where which rows lie
        chunk   about 64 MiB of rows in safetensors form

Each level carries the SHA-256 of the next, and the manifest its own, so what hangs on a proven
manifest is proven. Everything is JSON or raw numbers; every field is checked when read, because
whoever can write to the store can write anything.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    field_validator,
)

from dist_embed.errors import UserError

FORMAT = 2
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_INDEX_BYTES = 64 * 2**20
MANIFESTS = "manifests"
OBJECTS = "objects"
METRIC = "validation_loss"  # among scalars, of a checkpoint whose step was validated

_FILE_NAME = re.compile(r"step-(\d{9,15})-(\d{1,4})\.manifest", re.ASCII)


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used."""


class CheckpointLate(CheckpointError, TimeoutError):
    """A checkpoint was not written in time, as where a disk stalls: it may go well another time."""


class CheckpointDamaged(CheckpointError):
    """A checkpoint's bytes are not those that were saved, or some are missing."""


class CheckpointConflict(CheckpointError):
    """Another writer has saved the same step of the same run."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=_Part)
Item = TypeVar("Item")
# One mistake is told; thousands would only take memory.
Items = Annotated[list[Item], FailFast()]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,199}$")]
AttemptName = Annotated[str, StringConstraints(pattern=r"^step-\d{9,15}-\d{8}T\d{6}Z-[0-9a-f]{8}$")]
TensorName = Annotated[str, StringConstraints(min_length=1, max_length=400)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**62)]
ROW_TYPES = ("F32", "F16", "BF16")
DType = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"]


Shape = Annotated[list[Count], Field(max_length=8)]


class TensorInfo(_Part):
    """A whole tensor, all workers' rows together."""

    dtype: DType
    shape: Shape

    @property
    def num_rows(self) -> int:
        """Rows, the length of the first dim; a single value counts as one row."""
        return self.shape[0] if self.shape else 1


class IndexInfo(_Part):
    """One index object, and which rows of which tensors the chunks it lists hold."""

    name: Name
    size_bytes: Annotated[int, Field(ge=0, le=MAX_INDEX_BYTES)]
    sha256: Digest
    num_chunks: Count
    chunk_bytes: Count
    rows: dict[TensorName, Annotated[list[Count], Field(min_length=2, max_length=2)]]


class Manifest(_Part):
    """The content of a manifest.

    Attributes:
        step: optimizer steps done.
        attempt: folder of its objects; no other attempt, of this step or any, shares it.
        created: UTC time, ISO 8601.
        num_workers: workers that wrote it; any number may load it.
        fingerprint: SHA-256 of the settings that decide what a step does.
        block_bytes: bytes of a chunk that one digest covers.
        tensors: all tensors by name.
        row_multipliers: for each table m of ``row = (id * m) mod rows``.
        indexes: the index objects.
        scalars: counters, loader position, metrics: plain JSON values.
    """

    format: Literal[2] = 2
    step: Count
    attempt: AttemptName
    created: Annotated[str, StringConstraints(max_length=40)]
    num_workers: Annotated[int, Field(ge=1, le=2**31)]
    fingerprint: Annotated[str, StringConstraints(max_length=64)]
    block_bytes: Annotated[int, Field(ge=2**10, le=2**26)]
    tensors: dict[TensorName, TensorInfo]
    row_multipliers: dict[TensorName, Count]
    indexes: Items[IndexInfo]
    scalars: dict[str, JsonValue]

    @field_validator("scalars")
    @classmethod
    def _finite(cls, scalars: dict[str, JsonValue]) -> dict[str, JsonValue]:
        json.dumps(scalars, allow_nan=False)  # JSON has none; a reader may put up with them
        return scalars

    @field_validator("indexes")
    @classmethod
    def _distinct(cls, indexes: list[IndexInfo]) -> list[IndexInfo]:
        if len({index.name for index in indexes}) < len(indexes):
            raise ValueError("an index is listed twice")
        return indexes

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects but the manifest."""
        return sum(index.size_bytes + index.chunk_bytes for index in self.indexes)

    def rows_of(self, table: str) -> TensorInfo:
        """What it says of a table's rows. Raises CheckpointError where it has no such table."""
        info = self.tensors.get(f"table.{table}.weight")
        if info is None or table not in self.row_multipliers:
            names = ", ".join(self.row_multipliers)
            raise CheckpointError(
                f"the checkpoint of step {self.step} has no table {table!r}; it has {names}"
            )
        if len(info.shape) != 2 or 0 in info.shape or info.dtype not in ROW_TYPES:
            raise CheckpointDamaged(
                f"the checkpoint of step {self.step} has table {table!r} as {info.dtype} of shape "
                f"{info.shape}, which no table has"
            )
        return info

    def object_name(self, name: str) -> str:
        """Where one of its objects lies, below the run's ``checkpoints`` folder."""
        return f"{OBJECTS}/{self.attempt}/{name}"


class PieceInfo(_Part):
    """Consecutive rows of one tensor in a chunk."""

    tensor: TensorName
    dtype: DType
    shape: Shape  # of these rows; empty for a single value
    first_row: Count
    offset: Count  # of their first byte in the chunk

    @property
    def num_rows(self) -> int:
        """Rows; a single value counts as one."""
        return self.shape[0] if self.shape else 1

    @property
    def end_row(self) -> int:
        """The row after the last one."""
        return self.first_row + self.num_rows


class ChunkInfo(_Part):
    """One chunk.

    Attributes:
        name: below the attempt's folder.
        size_bytes: its size.
        blocks: the SHA-256 of every block in turn, in hex.
        sha256: SHA-256 of those digests' bytes (a hash tree of depth one).
        pieces: the rows in it.
    """

    name: Name
    size_bytes: Count
    sha256: Digest
    blocks: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})*$")]
    pieces: Items[PieceInfo]

    def block_digest(self, number: int) -> bytes:
        """Digest of block ``number``."""
        return bytes.fromhex(self.blocks[64 * number : 64 * (number + 1)])


class Index(_Part):
    """The content of an index object."""

    chunks: Items[ChunkInfo]

    def rows(self) -> dict[str, list[int]]:
        """First and end row of each tensor in the chunks."""
        found: dict[str, list[int]] = {}
        for piece in (piece for chunk in self.chunks for piece in chunk.pieces):
            first, end = found.get(piece.tensor, [piece.first_row, piece.end_row])
            found[piece.tensor] = [min(first, piece.first_row), max(end, piece.end_row)]
        return found

    @property
    def chunk_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.size_bytes for chunk in self.chunks)

    def is_described_by(self, info: IndexInfo) -> bool:
        """Whether what the manifest says of the chunks holds."""
        said = (info.num_chunks, info.chunk_bytes, info.rows)
        return said == (len(self.chunks), self.chunk_bytes, self.rows())


@dataclass(frozen=True, order=True)
class ManifestName:
    """Where a manifest lies.

    ``generation`` counts manifests of one step: a run that fell back past a damaged checkpoint and
    reaches its step again writes the next one. The highest counts.
    """

    step: int
    generation: int

    @property
    def path(self) -> str:
        """Name below the run's ``checkpoints`` folder."""
        return f"{MANIFESTS}/step-{self.step:09d}-{self.generation}.manifest"

    @classmethod
    def parse(cls, file_name: str) -> ManifestName | None:
        """The name, or None where ``file_name`` is no manifest's."""
        match = _FILE_NAME.fullmatch(file_name)
        name = cls(int(match[1]), int(match[2])) if match else None
        # A name with other zeros would be taken for the one without.
        return name if name and name.path == f"{MANIFESTS}/{file_name}" else None


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file: the manifest as one line of JSON, then a line with its SHA-256."""
    line = manifest.model_dump_json().encode()
    seal = json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode()
    data = line + b"\n" + seal + b"\n"
    if len(data) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"a manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES}")
    return data


def parse_manifest(data: bytes | bytearray, origin: str) -> Manifest:
    """Read what `manifest_bytes` wrote. Raises CheckpointDamaged naming ``origin``."""
    line, _, seal = bytes(data).partition(b"\n")
    expected = json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode() + b"\n"
    if seal != expected:
        raise CheckpointDamaged(f"{origin}: not the manifest that was written (wrong SHA-256)")
    found = re.match(rb'\{"format":(\d{1,9}),', line)
    if found and int(found[1]) != FORMAT:
        raise CheckpointError(f"{origin}: format {int(found[1])}; this version reads {FORMAT}")
    return _parse(Manifest, line, origin)


def parse_index(data: bytes | bytearray, origin: str) -> Index:
    """Read an index object whose digest has been checked. Raises CheckpointDamaged."""
    return _parse(Index, bytes(data), origin)


def _parse(kind: type[P], data: bytes, origin: str) -> P:
    try:
        return kind.model_validate_json(data)
    except (ValidationError, ValueError, RecursionError) as exc:
        what: Any = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else exc
        where = exc.errors()[0]["loc"] if isinstance(exc, ValidationError) else ""
        raise CheckpointDamaged(
            f"{origin}: not a checkpoint's {kind.__name__.lower()}: "
            f"{str(where)[:200]} {str(what)[:200]}"
        ) from exc

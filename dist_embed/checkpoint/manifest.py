"""What a checkpoint consists of. The manifest is written last: a checkpoint exists when it does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from dist_embed.config.errors import UserError

FORMAT = 1
MANIFEST_NAME = "manifest.json"


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object below the checkpoint's folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class TablePart:
    """Rows ``first_row`` to ``first_row + num_rows`` of a table, in one object."""

    object_name: str
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class TableInfo:
    """One table: V rows of D values, and the row-wise state tensors saved with them."""

    num_rows: int
    width: int
    tensors: list[str]
    parts: list[TablePart]


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        step: optimizer steps done.
        num_workers: workers that wrote it; any number may load it.
        objects: every object.
        dense_object: name of the object with the replicated tensors.
        tables: the tables by name.
        scalars: counters, loader position, metrics: plain JSON values.
    """

    step: int
    num_workers: int
    objects: list[ObjectInfo]
    dense_object: str
    tables: dict[str, TableInfo]
    scalars: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> Manifest:
        """Read what `to_json` wrote. Raises CheckpointError naming ``origin``."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise CheckpointError(
                    f"{origin}: format {values['format']!r}; this version reads {FORMAT}"
                )
            objects = [ObjectInfo(**o) for o in values.pop("objects")]
            tables = {
                name: TableInfo(**(table | {"parts": [TablePart(**p) for p in table["parts"]]}))
                for name, table in values.pop("tables").items()
            }
            return cls(objects=objects, tables=tables, **values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise CheckpointError(f"{origin}: not a checkpoint manifest: {exc!r}") from exc

    def object_named(self, name: str) -> ObjectInfo:
        """The object's entry. Raises CheckpointError."""
        for info in self.objects:
            if info.name == name:
                return info
        raise CheckpointError(f"the manifest of step {self.step} names no object {name!r}")

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(info.size_bytes for info in self.objects)

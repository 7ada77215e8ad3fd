"""Token shards that a preparation has finished, for the one after it if it is ended too early.

Once a shard is written, a record of it goes into a folder beside (`FINISHED`): one digest of what
it was made from, and what proves the file. A later preparation reads the corpora as ever, and takes
over what was made from the same text in the same way: the file is copied into its own folder, where
nobody else writes. The records are removed once data count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain

import pyarrow as pa
import tokenizers

from dist_embed.data.proof import FileInfo, read_proven, sealed, unsealed
from dist_embed.data.text.rows import Pair
from dist_embed.data.token_shards import FORMAT
from dist_embed.errors import StorageError, UserError
from dist_embed.storage import uri as storage

# Below the folder that data are prepared in.
FINISHED = "finished"
# With others of these, other bytes may be made of the same text.
_VERSIONS = (FORMAT, tokenizers.__version__, pa.__version__)


@dataclass
class LeftOut:
    """How many pairs of a block were left out, and why; and how many were cut."""

    dropped_empty: int = 0
    dropped_long: int = 0
    dropped_ratio: int = 0
    cut: int = 0


def finished_shards(earlier: Sequence[str], split: str) -> dict[str, list[str]]:
    """By the names of shards of a split, which folders of ``earlier`` preparations have them."""
    found: dict[str, list[str]] = {}
    for folder in earlier:
        for name in storage.names_in(storage.join(folder, FINISHED, split)):
            shard = f"{split}/{name.removesuffix('.json')}.parquet"
            found.setdefault(shard, []).append(folder)
    return found


def without_overtaken(folders: Sequence[str]) -> list[str]:
    """Those of ``folders`` that others do not make superfluous.

    A folder is removed where another one has all its shards, as the preparation there has taken
    them over: else every preparation that is ended would leave all of them once more. Of their
    records the first and the last are compared; were one between them another's, that shard would
    be made anew. Raises StorageError.
    """
    records = {folder: _names(folder) for folder in folders}
    left = sorted(folders, key=lambda folder: len(records[folder]))
    for folder in list(left):
        own = records[folder]
        ends = {min(own), max(own)} if own else set()
        others = [one for one in left if one != folder and own <= records[one]]
        if any(all(_are_alike(folder, one, name) for name in ends) for one in others):
            left.remove(folder)
            with suppress(Exception):  # removed once data count
                storage.remove(folder)
    return left


def _names(folder: str) -> set[str]:
    """Of a preparation's records, below `FINISHED`."""
    top = storage.join(folder, FINISHED)
    return {
        f"{split}/{name}"
        for split in storage.names_in(top)
        for name in storage.names_in(storage.join(top, split))
    }


def _are_alike(folder: str, other: str, name: str) -> bool:
    try:
        here, there = (
            storage.read_bytes(storage.join(one, FINISHED, name)) for one in (folder, other)
        )
    except FileNotFoundError:  # gone meanwhile
        return False
    return here == there


def made_from(block: list[Pair], *how: object) -> str:
    """SHA-256, in hex, of pairs of texts, of ``how`` they become a shard (what JSON can hold), and
    of the versions of what does it.
    """
    digest = hashlib.sha256(json.dumps([how, _VERSIONS]).encode())
    texts = "\n".join(chain.from_iterable(block))  # a line each
    digest.update(texts.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def keep_record(folder: str, name: str, made: str, file: FileInfo, left_out: LeftOut) -> None:
    """Write down that the shard ``name`` is finished."""
    values = {"made_from": made, "file": asdict(file), "left_out": asdict(left_out)}
    storage.write_text(_record(folder, name), sealed(values))


def take_over(folders: Sequence[str], name: str, made: str) -> tuple[bytes, LeftOut] | None:
    """The bytes of the shard ``name``, if it was finished in one of the ``folders`` and made from
    what `made_from` says; and what was left out of it. Raises StorageError.
    """
    for folder in folders:
        try:
            record = unsealed(storage.read_text(_record(folder, name)))
            if record["made_from"] == made:
                uri = storage.join(folder, name)
                content = read_proven(uri, FileInfo(**record["file"]), "it is made anew")
                return content, LeftOut(**record["left_out"])
        except StorageError:
            raise
        except (UserError, OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or gone
    return None


def _record(folder: str, name: str) -> str:
    return storage.join(folder, FINISHED, f"{name.removesuffix('.parquet')}.json")

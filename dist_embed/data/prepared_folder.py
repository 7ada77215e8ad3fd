"""Where the files of prepared data lie: in a folder of their own, which ``data.json`` names.

Every preparation writes into a new folder below ``data.uri``, and counts once ``data.json`` there
names it. So a reader sees one preparation, whole, whatever others do meanwhile; two at once cannot
be mixed; and one that is killed leaves what was there. Data prepared before this was so lie in
``data.uri`` itself, and that folder is the same in all else.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dist_embed.data.finished_shards import FINISHED
from dist_embed.data.token_shards import FORMAT, INDEX_NAME, SPLITS
from dist_embed.errors import RunFailed, StoreUnavailable
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import from_json

# Others' folders may have names that begin so.
_NAME = re.compile(r"prepared-[0-9a-f]{16}")
# What the same command may get past when it is called again.
_PASSING = (KeyboardInterrupt, SystemExit, RunFailed, StoreUnavailable)


def prepared_folder(data_uri: str) -> str:
    """Where the files of the prepared data lie now.

    To be asked once by whoever reads several of them. What ``data.json`` is damaged for, or missing
    for, is told by its reader.
    """
    try:
        content = storage.read_bytes(storage.join(data_uri, INDEX_NAME))
    except FileNotFoundError:
        return data_uri
    try:
        values = from_json(content)
    except ValueError:
        return data_uri
    folder = values.get("folder") if isinstance(values, dict) else None
    if not (isinstance(folder, str) and _NAME.fullmatch(folder)):
        return data_uri
    return storage.join(data_uri, folder)


@contextmanager
def new_folder(data_uri: str) -> Iterator[str]:
    """A folder to prepare data in, which is removed again after an error, unless it counts by then:
    a write may have taken effect and be told as failed.

    After a signal, or an error that may pass, it stays for the next preparation where shards have
    been finished (`left_behind`).
    """
    folder = storage.join(data_uri, f"prepared-{secrets.token_hex(8)}")
    try:
        yield folder
    except BaseException as exc:
        with suppress(Exception):  # the error counts; the next preparation removes what is left
            is_kept = isinstance(exc, _PASSING) and storage.names_in(storage.join(folder, FINISHED))
            if not is_kept and prepared_folder(data_uri) != folder:
                storage.remove(folder)
        raise


def left_behind(data_uri: str, folder: str) -> list[str]:
    """Folders of preparations other than that in ``folder`` that were ended before they counted,
    with shards that they have finished.
    """
    others = [storage.join(data_uri, n) for n in storage.names_in(data_uri) if _NAME.fullmatch(n)]
    known = (folder, prepared_folder(data_uri))
    return [u for u in others if u not in known and storage.names_in(storage.join(u, FINISHED))]


def publish(data_uri: str, folder: str) -> None:
    """From now on the data in ``folder`` are the prepared ones of ``data_uri``."""
    pointer = {"folder": folder.rsplit("/", 1)[-1], "format": FORMAT}
    storage.write_text(storage.join(data_uri, INDEX_NAME), json.dumps(pointer, indent=1) + "\n")


def remove_others(data_uri: str, folder: str) -> None:
    """Remove the folders of earlier preparations, shards of those that had none, and what
    ``folder`` itself held for the time before it counted.

    Whoever still reads those data, or is preparing others, finds that they are gone.
    """
    if prepared_folder(data_uri) != folder:
        return  # another one has been prepared since, and removes this one
    storage.remove(storage.join(folder, FINISHED))
    kept = folder.rsplit("/", 1)[-1]
    for name in storage.names_in(data_uri):
        if _NAME.fullmatch(name) and name != kept:
            storage.remove(storage.join(data_uri, name))
    for split in SPLITS:  # of data that lay in the folder itself
        for name in storage.names_in(storage.join(data_uri, split)):
            if name.startswith("shard-"):
                storage.remove(storage.join(data_uri, split, name))

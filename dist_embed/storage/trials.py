"""Whether something can be written somewhere, tried before the work for it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_embed.errors import NotWritable, StorageError, UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.retry import denies


def check_new_file(uri: str, name: str) -> None:
    """Refuse a local file that `dist_embed.storage.uri.whole_file` could not write.

    Raises UserError, which calls it ``name``: NotWritable where the place would do. Of a URL
    nothing is known before.
    """
    if not storage.is_local(uri):
        return
    path = storage.local_path(uri)
    with _telling_what_is_wrong(uri, name):
        if path.is_dir():
            raise ValueError("that is a folder")
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist")
        _try_a_file(Path(os.path.realpath(path)).parent)


def check_new_folder(uri: str, name: str) -> None:
    """The same for files below a local folder, which is there or can be made."""
    with _telling_what_is_wrong(uri, name):
        folder = storage.local_path(uri)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"{there} is a file")
        _try_a_file(there)


def check_writable(folder_uri: str, name: str) -> None:
    """Refuse a folder or URL below which nothing can be written: writes a file there, and removes
    it.

    Raises UserError, which calls it ``name``.
    """
    # Others may try at the same time.
    trial = storage.join(folder_uri, f".trial-{secrets.token_hex(8)}")
    try:
        storage.write_bytes(trial, b"")
    except (OSError, StorageError) as exc:
        refused = isinstance(exc, OSError) or denies(exc.__cause__)
        kind = NotWritable if refused else UserError
        raise kind(
            f"{name}: {folder_uri!r} is not allowed: nothing can be written there: {exc}"
        ) from exc
    with suppress(OSError, StorageError):  # some may write and not remove
        storage.remove(trial)


def _try_a_file(folder: Path) -> None:
    # Rights alone do not tell: of a read-only disk, or of root's in /proc.
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _telling_what_is_wrong(uri: str, name: str) -> Iterator[None]:
    """What the system, or a ValueError, says of a place is raised as an error of ``name``."""
    try:
        yield
    except ValueError as exc:
        raise UserError(f"{name}: {uri!r} is not allowed: {exc}") from None
    except OSError as exc:
        raise NotWritable(
            f"{name}: {uri!r} is not allowed: nothing can be written there ({exc.strerror})"
        ) from exc

"""A folder for temporary files, whose full disk is told as one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.local_file import named
from dist_embed.storage.temporary import temporary_folder

_FULL_BYTES = 2**26  # less is left of a full disk: no more is written at once


@contextmanager
def scratch_folder(prefix: str, what: str) -> Iterator[str]:
    """A new folder for the length of a ``with`` block.

    Args:
        prefix: its name begins so.
        what: is done there, for the message.

    Raises:
        UserError: its disk is full. What writes there must raise OSErrors with a number, as plain
            files do and ``np.save`` does not.
    """
    with temporary_folder(prefix) as folder:
        try:
            yield folder
        except OSError as exc:
            # Another disk that is written to meanwhile may be the full one.
            if exc.errno != errno.ENOSPC or shutil.disk_usage(folder).free > _FULL_BYTES:
                raise
            raise UserError(
                f"no space is left for {folder}, where {what}; the environment variable TMPDIR "
                "chooses the folder of temporary files"
            ) from exc


def write_scratch(uri: str, content: bytes) -> None:
    """Write a file of a scratch folder, which may be at a URL.

    Not durably on a local disk: nothing in such a folder is for whoever comes after a crash.
    """
    if storage.is_local(uri):
        path = storage.local_path(uri)
        with named(path):
            path.write_bytes(content)
    else:
        storage.write_bytes(uri, content)

"""Files that all processes of a machine map: fetched and proven by one of them."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path

from dist_embed.data.proof import FileInfo, copy_proven, prove_file
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.temporary import Shared, remove_abandoned, shared_folder
from dist_embed.storage.turns import NoTurn, taking_turns

# A table of 10⁹ words is some 35 GB.
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class AtHand:
    """A local file, and what keeps it from being removed while somebody refers to this."""

    path: str
    held: Shared


def at_hand(uri: str, expected: FileInfo, remedy: str) -> AtHand:
    """A proven local file of what lies at ``uri``: itself, or what was fetched from a store.

    A fetched one stays until no process of this machine and user refers to it, and the next one
    that fetches or proves a file, or the next command, removes it.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not the one that was written, or another process takes too long to look.
    """
    path = storage.local_path(uri) if storage.is_local(uri) else None
    which = expected.sha256
    if path:  # one that was replaced since is looked at anew
        found = path.stat()
        which += f" {path.resolve()} {found.st_dev} {found.st_ino}"
        which += f" {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    remove_abandoned()
    held = shared_folder(f"mapped-{hashlib.sha256(which.encode()).hexdigest()[:16]}")
    try:
        with taking_turns(held.path, "prove", lambda: None, longest=_LONGEST_SECONDS):
            if path:
                proven = Path(held.path, "proven")
                if not proven.exists():
                    prove_file(uri, expected, remedy)
                    proven.touch()
            else:
                path = Path(held.path, "file")
                if not path.exists():
                    _fetch(uri, path, expected, remedy)
    except NoTurn as exc:
        raise UserError(f"{uri}: {exc}, while it fetched or proved the file") from exc
    return AtHand(str(path), held)


def _fetch(uri: str, path: Path, expected: FileInfo, remedy: str) -> None:
    for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
        left.unlink(missing_ok=True)
    try:
        copy_proven(uri, str(path), expected, remedy)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{uri} does not fit into {path.parent}: it takes {expected.size_bytes:,} bytes "
            f"({exc.strerror}); let the environment variable TMPDIR name another folder of "
            "temporary files"
        ) from exc

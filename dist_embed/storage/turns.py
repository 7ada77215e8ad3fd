"""One process after the other, at a local path or on an object store.

Locally by a lock on a file, which the system gives free when its holder ends, however that is.
Elsewhere, and where a file system has no locks, by an object that its holder renews: whoever sees
it unchanged for `STALE_SECONDS`, by a clock of its own, takes it over. That is a courtesy and no
proof: a store may ignore the condition of a put (rclone's server does), a holder may have been
suspended. What must hold in any case must hold without it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ObjectStore
from dist_embed.storage.retry import RETRY_SECONDS

LOCK_SECONDS = 0.5  # between looks at a lock
OBJECT_SECONDS = 5.0  # between looks at an object
RENEW_SECONDS = 15.0
STALE_SECONDS = 120.0
# A holder that lives, and does nothing for so long, is not waited for any longer.
LONGEST_WAIT_SECONDS = 24 * 3600.0

# Says whether the turn is still ours.
StillOurs = Callable[[], bool]


class NoTurn(Exception):
    """Another process has kept its turn for too long."""


@contextmanager
def taking_turns(
    folder_uri: str, name: str, waiting: Callable[[], None], longest: float = LONGEST_WAIT_SECONDS
) -> Iterator[StillOurs]:
    """For the length of a ``with`` block no other process is in one of the same folder and name.

    Args:
        folder_uri: a folder that all of them may write to.
        name: what the turn is for; the name of the file or object begins so.
        waiting: is called once where another one's end has to be waited for.
        longest: how long that may take, in seconds.

    Raises:
        NoTurn: it took longer.
        OSError, StorageError: the folder cannot be written to.
    """
    start = time.monotonic()

    def pause(seconds: float) -> None:
        if time.monotonic() - start >= longest:
            raise NoTurn(f"another process did not end within {longest:.0f} s")
        time.sleep(seconds)

    told = _once(waiting)
    if storage.is_local(folder_uri):
        path = storage.local_path(folder_uri) / f"{name}.lock"
        handle = _locked(path, told, pause)
        if handle is not None:
            try:
                yield lambda: True
            finally:
                # Ours while it has its name: whoever has opened it meanwhile looks again.
                with suppress(OSError):
                    path.unlink()
                os.close(handle)
            return
    with _object_held(folder_uri, f"{name}.json", told, pause) as still_ours:
        yield still_ours


def _once(call: Callable[[], None]) -> Callable[[], None]:
    left = [call]
    return lambda: left.pop()() if left else None


def _locked(path: Path, waiting: Callable[[], None], pause: Callable[[float], None]) -> int | None:
    """The handle of a locked file; None: there are no locks here."""
    storage.make_folder(path.parent)
    while True:
        # For writing: NFS makes locks of byte ranges of them, which need that (flock(2)).
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(handle)
            if exc.errno != errno.EWOULDBLOCK:
                path.unlink(missing_ok=True)
                return None
            waiting()
            pause(LOCK_SECONDS)
        else:
            if _is_still(handle, path):
                return handle
            os.close(handle)  # its holder has removed it


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _object_held(
    folder_uri: str, name: str, waiting: Callable[[], None], pause: Callable[[float], None]
) -> Iterator[StillOurs]:
    uri, owner = storage.join(folder_uri, name), secrets.token_hex(8)
    _create(folder_uri, name, owner, waiting, pause)
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        while not ended.wait(RENEW_SECONDS):
            beat += 1
            # A store that fails may be heard again before the others take over. Its client has
            # errors of its own kinds.
            with suppress(Exception):
                if _owner(_content(uri)) != owner:
                    return
                storage.write_text(uri, f"{owner} {beat}\n")

    thread = threading.Thread(target=renew, daemon=True, name="renews a turn")
    thread.start()
    try:
        yield lambda: _owner(_content(uri)) == owner
    finally:
        ended.set()
        thread.join(3 * RETRY_SECONDS)  # what it writes now would come back after it was removed
        with suppress(Exception):  # it is stale soon, and the block's error counts
            if _owner(_content(uri)) == owner:
                storage.remove(uri)


def _create(
    folder_uri: str, name: str, owner: str, waiting: Callable[[], None],
    pause: Callable[[float], None],
) -> None:  # fmt: skip
    store, uri = ObjectStore(folder_uri), storage.join(folder_uri, name)
    seen, seen_at = "", 0.0
    while True:
        try:
            store.create(name, f"{owner} 0\n".encode())
        except FileExistsError:
            pass
        else:
            return
        found = _content(uri)
        if found != seen:
            seen, seen_at = found, time.monotonic()
        elif found and time.monotonic() - seen_at > STALE_SECONDS:
            storage.remove(uri)
            continue
        waiting()
        pause(OBJECT_SECONDS)


def _content(uri: str) -> str:
    try:
        return storage.read_text(uri)
    except FileNotFoundError:
        return ""


def _owner(content: str) -> str:
    return content.split(" ")[0]

"""The logs of a run's workers: brought to a run at a URL, and read wherever a run lies.

In a run's folder workers write them themselves. An object store cannot append: for a run at a URL
each worker writes on its own machine, and what its log ends with is uploaded from there.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_embed.errors import StorageError, UserError
from dist_embed.run.folder import CONFIG_NAME, read_run_config
from dist_embed.storage import uri as storage

FOLDER = "logs"
MOST_BYTES = 4 * 2**20  # of a log that are uploaded, or shown: its end
EVERY_SECONDS = 300.0
END_SECONDS = 10.0  # that the last upload may take: the end of a run does not wait for a store


@contextmanager
def uploaded(log_file: Path, run_uri: str) -> Iterator[None]:
    """Bring a worker's log to its run at a URL, every five minutes and at the end of the block.

    What cannot be uploaded is tried again the next time, and said in the log alone. An error that
    ends the block is in the log by then. Does nothing else for a run in a folder. Not collective.
    """
    done = threading.Event()
    thread: threading.Thread | None = None
    if not storage.is_local(run_uri):
        target = storage.join(run_uri, FOLDER, log_file.name)
        thread = threading.Thread(
            target=_upload_until, args=(done, log_file, target), name="log", daemon=True
        )
        thread.start()
    try:
        yield
    except Exception:
        logging.getLogger(__name__).exception("this worker ends with an error")
        raise
    finally:
        done.set()
        if thread is not None:
            thread.join(END_SECONDS)


def _upload_until(done: threading.Event, log_file: Path, target: str) -> None:
    ended, size = False, -1
    earlier: bytes | None = None
    while not ended:
        ended = done.wait(EVERY_SECONDS)
        try:
            if log_file.stat().st_size == size:
                continue
            size = log_file.stat().st_size
            where = _name_of(log_file)
            if earlier is None:
                earlier = _said_elsewhere(target, where)
            said = earlier + where + _end_of(str(log_file), size)
            storage.write_bytes(target, said[-MOST_BYTES:])
        except (StorageError, OSError) as exc:
            size = -1
            logging.getLogger(__name__).warning("log not uploaded to %s: %s", target, exc)


def _name_of(log_file: Path) -> bytes:
    """The line above what comes from this file: a worker may begin again on another machine."""
    return f"-- on {socket.gethostname()}, file {log_file.stat().st_ino} --\n".encode()


def _said_elsewhere(target: str, where: bytes) -> bytes:
    """What workers of this rank have uploaded from other files than this one."""
    try:
        there = storage.read_bytes(target)
    except FileNotFoundError:
        return b""
    first, *rest = re.split(rb"^(-- on .+, file \d+ --\n)", there, flags=re.MULTILINE)
    parts = zip(rest[::2], rest[1::2], strict=True)
    return first + b"".join(name + said for name, said in parts if name != where)


def _end_of(uri: str, size: int) -> bytes:
    return storage.read_range(uri, max(0, size - MOST_BYTES), size)


def is_run(text: str) -> bool:
    """Whether a word names a run rather than a job: by its form, or as there is one."""
    return "/" in text or storage.exists(storage.join(text, CONFIG_NAME))


def read_logs(run_uri: str) -> Iterator[bytes]:
    """The logs of a run's workers by rank, each below a line with its name, at most the last
    `MOST_BYTES` of each. Those of a run at a URL are up to five minutes old while it trains.

    Raises UserError: there is no run, or none of its workers has left a log.
    """
    read_run_config(run_uri)
    folder = storage.join(run_uri, FOLDER)
    found = [
        (int(match[1]), name)
        for name in storage.names_in(folder)
        if (match := re.fullmatch(r"worker-(\d+)\.log", name))
    ]
    if not found:
        raise UserError(f"{folder} holds no log of a worker yet")
    for _, name in sorted(found):
        uri = storage.join(folder, name)
        size = storage.stamp(uri).size_bytes or MOST_BYTES  # uploaded ones are no longer
        cut = f", the last {MOST_BYTES / 2**20:.0f} MiB" if size > MOST_BYTES else ""
        yield f"==> {name}{cut} <==\n".encode()
        yield _end_of(uri, size) + b"\n"

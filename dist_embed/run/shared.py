"""Whether all workers have the run's folder, before anything is made for it."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

from dist_embed.errors import NotWritable, StorageError, UserError
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.storage import uri as storage
from dist_embed.storage.trials import check_writable

_WANTED = "run.uri must be a URL, or a folder that all nodes share and where each may write"
_ONE_PLACE = "run.uri must lead all nodes to one place: have they the same settings of its store?"


def check_shared(run_uri: str, group: Group) -> None:
    """Refuse a run's folder that a worker cannot write to, or that is another one for it than for
    worker 0: else the first save would find it out. Collective.

    Raises UserError, which names the node; NotWritable for the former.
    """
    worker = f"worker {group.rank} on {socket.gethostname()}"
    mark, is_written = f".mark-{secrets.token_hex(8)}", False  # worker 0's
    try:
        with all_or_none(group):
            try:
                check_writable(run_uri, "run.uri")
                if group.is_first:
                    storage.write_bytes(storage.join(run_uri, mark), b"")
                    is_written = True
            except (OSError, UserError) as exc:
                kind = NotWritable if isinstance(exc, OSError | NotWritable) else UserError
                wanted = f"; {_WANTED}" if storage.is_local(run_uri) else ""
                raise kind(f"{worker}: {exc}{wanted}") from exc
        mark = same_text_from_first(mark, group)
        with all_or_none(group):
            if not storage.exists(storage.join(run_uri, mark)):
                raise UserError(
                    f"{worker} does not see what worker 0 has written to {run_uri}: "
                    + (_WANTED if storage.is_local(run_uri) else _ONE_PLACE)
                )
    finally:
        if is_written:
            with suppress(OSError, StorageError):  # some may write and not remove
                storage.remove(storage.join(run_uri, mark))

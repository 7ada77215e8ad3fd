"""How worker 0 learns what the others have written of a checkpoint, behind training.

Training's exchanges go on meanwhile, so none of them can be used; and a process group of the
writers' own dies with its first time-out, or where a network drops connections that are idle
between two saves (decision 18). So each worker leaves a note in the store through which the group
has found itself, on a connection that is made for this save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from pydantic import TypeAdapter

from dist_embed.checkpoint.manifest import CheckpointError, CheckpointLate, IndexInfo
from dist_embed.parallel.group import Group

_POLL_SECONDS = 0.05
# A store takes no value above 8 MiB (torch 2.13, TCPStore: it closes the connection).
_PIECE_BYTES = 2**20
_INDEXES = TypeAdapter(list[IndexInfo])


class PartMissing(CheckpointError):
    """Another worker has not written its part."""


class PartLate(PartMissing, CheckpointLate):
    """Another worker has not written its part in time."""


class Parts:
    """The parts of one attempt to save; connects to the group's store. Nothing here is collective.

    Args:
        attempt: its name, the same on every worker.
        group: this worker and its peers.
        earlier: of the save before, whose notes of this worker are removed.
        go_on: is called before each call of the group's store; what it raises, all here do.

    Every method raises RuntimeError where the store's process has ended, and this constructor
    ValueError where the process group has. Where that process or its machine only stands still,
    each of them, the constructor too, blocks beyond any time-out that the store was given
    (torch 2.13). What bounds that is who waits for the thread: `Saver.wait` and `Saver.close`.
    """

    def __init__(
        self,
        attempt: str,
        group: Group,
        earlier: Parts | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._group = group
        self._key = f"dist_embed/{attempt}"
        self._left = [self._progress(group.rank)]
        self._go_on = go_on
        store: Any = dist.distributed_c10d._get_default_store()  # no public accessor exists
        go_on()
        # Of its own: whoever waits for an answer on a connection keeps others from using it.
        self._connection = store.clone()
        for key in earlier._left if earlier is not None else ():
            self._store().delete_key(key)

    def _store(self) -> Any:
        """The group's store, for one call; raises where there is to be none."""
        self._go_on()
        return self._connection

    def note_progress(self) -> None:
        """Say that more of this worker's part is written."""
        self._store().add(self._progress(self._group.rank), 1)

    def note_written(self, indexes: list[IndexInfo]) -> None:
        """Say that this worker's part is written."""
        text = _INDEXES.dump_json(indexes).decode()
        pieces = [text[at : at + _PIECE_BYTES] for at in range(0, len(text), _PIECE_BYTES)]
        for number, piece in enumerate(pieces):
            self._leave(self._piece(self._group.rank, number), piece)
        self._leave(self._end(self._group.rank), str(len(pieces)))

    def note_failed(self) -> None:
        """Say that this worker's part cannot be written."""
        self._leave(self._end(self._group.rank), "0")

    def note_over(self) -> None:
        """Say, on worker 0, that the attempt has come to its end, well or not."""
        self._leave(self._over, "")

    def wait_until_over(self, quiet_seconds: float) -> None:
        """Wait until `note_over` is called on worker 0; or for so long without any progress."""
        heard, progress = time.monotonic(), -1
        while not self._store().check([self._over]):
            seen, now = self._all_progress(), time.monotonic()
            if seen != progress:
                progress, heard = seen, now
            if now - heard > quiet_seconds:
                return
            time.sleep(_POLL_SECONDS)

    def collect(
        self,
        timeout_seconds: float,
        quiet_seconds: float,
        *,
        hurried: threading.Event,
    ) -> list[IndexInfo]:
        """All workers' indexes, in the order of ranks; for worker 0.

        Args:
            timeout_seconds: how long it waits for the others.
            quiet_seconds: and without any progress of theirs, once it is hurried.
            hurried: once set, it waits only while there is progress.

        Raises PartMissing, or PartLate where the time has run out.
        """
        ranks = range(self._group.num_workers)
        ends = [self._end(rank) for rank in ranks]
        began = heard = time.monotonic()
        progress = -1
        while True:
            if self._store().check(ends):
                break
            now = time.monotonic()
            if hurried.is_set():
                seen = self._all_progress()
                if seen != progress:
                    progress, heard = seen, now
            quiet = hurried.is_set() and now - heard > quiet_seconds
            if quiet or now - began > timeout_seconds:
                late = [rank for rank in ranks if not self._store().check([ends[rank]])]
                raise PartLate(
                    f"{'workers' if len(late) > 1 else 'worker'} {', '.join(map(str, late))} had "
                    f"not written all {now - began:.0f} s after worker 0"
                )
            time.sleep(_POLL_SECONDS)
        counts = [int(self._store().get(end)) for end in ends]
        if 0 in counts:
            raise PartMissing(f"worker {counts.index(0)} has failed")
        indexes: list[IndexInfo] = []
        for rank, count in enumerate(counts):
            pieces = [self._store().get(self._piece(rank, number)) for number in range(count)]
            indexes += _INDEXES.validate_json(b"".join(pieces))
        return indexes

    def _leave(self, key: str, text: str) -> None:
        self._left.append(key)
        self._store().set(key, text)

    def _all_progress(self) -> int:
        ranks = range(self._group.num_workers)
        return sum(int(self._store().add(self._progress(rank), 0)) for rank in ranks)

    @property
    def _over(self) -> str:
        return f"{self._key}/over"

    def _progress(self, rank: int) -> str:
        return f"{self._key}/progress/{rank}"

    def _piece(self, rank: int, number: int) -> str:
        return f"{self._key}/part/{rank}/{number}"

    def _end(self, rank: int) -> str:
        return f"{self._key}/end/{rank}"

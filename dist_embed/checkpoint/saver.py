"""Saving while training goes on: the step stands still only while the rows are copied."""

from __future__ import annotations

import errno
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from dist_embed.checkpoint.manifest import (
    CheckpointConflict,
    CheckpointError,
    Manifest,
    ManifestName,
)
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.state import HostCopy, TrainingState, rows_to_save
from dist_embed.checkpoint.write import Description, write_checkpoint
from dist_embed.config.errors import UserError
from dist_embed.parallel.collectives import gather_texts
from dist_embed.parallel.errors import WorkerError, all_or_none
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from dist_embed.storage.retry import StorageError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class SaverSettings:
    """How a run saves.

    Attributes:
        asynchronous: write behind training; else training waits.
        max_failures: failed saves in a row that are borne; then the run stops.
        timeout_seconds: within which all workers must have written.
        drain_seconds: how long the end of a run waits for the last save.
    """

    asynchronous: bool
    max_failures: int
    timeout_seconds: float
    drain_seconds: float


@dataclass
class _Save:
    """One save under way: a thread of its own, and what came of it."""

    step: int
    stood_seconds: float
    started: float
    thread: threading.Thread | None = None
    manifest: Manifest | None = None
    error: Exception | None = None
    notes: list[str] = field(default_factory=list)
    ended: float = 0.0


class Saver:
    """Saves a run's state, one save at a time.

    Args:
        store: the run's ``checkpoints`` folder.
        group: this worker and its peers.
        settings: how.
        pruner: removes old checkpoints after each save; used on worker 0.
        damaged: manifests that the run went on without, see `load_newest`.
        report: takes lines for the user.
        copy: host memory to copy into, which a load may have used.
        beforehand: is called before each save's bytes are written, behind training, on worker 0.

    The constructor is collective.
    """

    def __init__(
        self,
        store: ObjectStore,
        group: Group,
        settings: SaverSettings,
        pruner: Pruner,
        *,
        damaged: frozenset[ManifestName] = frozenset(),
        report: Callable[[str], None],
        copy: HostCopy | None = None,
        beforehand: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._group = group
        self._settings = settings
        self._pruner = pruner
        self._damaged = damaged
        self._report = report
        self._beforehand = beforehand
        self._copy = copy or HostCopy()
        self._under_way: _Save | None = None
        self._failures = 0
        self._last_reason = ""
        self.saved_step = 0  # of the newest checkpoint that this saver has published
        # The writers meet in a group of their own: the training's exchanges go on meanwhile.
        self._writers = group
        if settings.asynchronous and group.num_workers > 1:
            # A peer that is gone is found here: the rendezvous below would wait for it as long as
            # writers may take.
            gather_texts("", group)
            timeout = timedelta(seconds=settings.timeout_seconds)
            pg = dist.new_group(backend="gloo", timeout=timeout)
            self._writers = replace(group, device=torch.device("cpu"), process_group=pg)

    def save(self, state: TrainingState) -> None:
        """Begin to save ``state``; returns as soon as it may change again.

        A save still under way is waited for first. A failure is reported, and raised where more
        than ``max_failures`` saves in a row have failed, or the disk is full. Collective.
        """
        self.wait()
        started = time.monotonic()
        state.before_reading()
        rows = rows_to_save(state)
        if self._settings.asynchronous:
            rows = self._copy.take(rows)
        description = Description(
            step=state.step,
            fingerprint=state.fingerprint,
            tensors={name: tensor.info for name, tensor in state.tensors.items()},
            row_multipliers=state.row_multipliers,
            scalars_json=json.dumps(state.scalars, allow_nan=False),
        )
        save = _Save(state.step, time.monotonic() - started, started)

        def write() -> None:
            try:
                if self._group.is_first:
                    save.notes += self._flush()
                save.manifest = write_checkpoint(
                    self._store, description, rows, self._writers, superseded=self._damaged
                )
                if self._group.is_first:
                    save.notes += self._prune()
            except Exception as exc:  # raised where the training can bear it: in `_conclude`
                save.error = exc
            save.ended = time.monotonic()

        self._under_way = save
        if self._settings.asynchronous:
            save.thread = threading.Thread(target=write, name="checkpoint", daemon=True)
            save.thread.start()
        else:
            write()
            save.stood_seconds = save.ended - started
            self._conclude()

    @property
    def is_under_way(self) -> bool:
        """Whether a save has been begun and not concluded; the same on every worker."""
        return self._under_way is not None

    @property
    def has_ended(self) -> bool:
        """Whether this worker's part in the save under way has ended, well or not."""
        save = self._under_way
        return save is not None and (save.thread is None or not save.thread.is_alive())

    def conclude(self) -> None:
        """Take in the save under way, which has ended on every worker. Raises as `save` does.

        Collective.
        """
        self._conclude()

    def wait(self, limit_seconds: float | None = None) -> None:
        """Wait for the save under way, if any; raises as `save` does.

        Raises:
            CheckpointError: it did not end within ``limit_seconds`` (default: twice the time-out of
                the writers) on some worker.

        Collective.
        """
        save = self._under_way
        if save is None:
            return
        limit = 2 * self._settings.timeout_seconds if limit_seconds is None else limit_seconds
        if save.thread is not None:
            save.thread.join(limit)
        with all_or_none(self._group):
            if not self.has_ended:
                raise CheckpointError(
                    f"the checkpoint of step {save.step} was not written within {limit:.0f} s"
                )
        self._conclude()

    def require(self, step: int) -> None:
        """Raise CheckpointError unless ``step`` has been saved: a run does not end well without its
        last checkpoint. Not collective, but the same on every worker.
        """
        if self.saved_step != step:
            raise CheckpointError(
                f"step {step} is trained but not saved: {self._last_reason}. The same command "
                "trains it again, from the newest checkpoint there is"
            )

    def close(self) -> None:
        """Give the save under way its time, when the run ends by an error. Not collective."""
        save = self._under_way
        if save is not None and save.thread is not None:
            save.thread.join(self._settings.drain_seconds)

    def _conclude(self) -> None:
        save = self._under_way
        assert save is not None
        self._under_way = None
        reason, fatal = self._why_failed(save)
        if not reason:
            assert save.manifest is not None
            self._failures = 0
            self._damaged = frozenset()
            self.saved_step = save.step
            self._report(
                f"step {save.step}: checkpoint saved ({save.manifest.size_bytes / 2**20:.1f} MiB "
                f"in {save.ended - save.started:.1f} s, training stood {save.stood_seconds:.2f} s)"
            )
            for note in save.notes:
                self._report(note)
            return
        self._failures += 1
        self._last_reason = reason
        self._report(f"step {save.step}: checkpoint NOT saved: {reason}")
        if fatal or self._failures > self._settings.max_failures:
            newest = f"the newest checkpoint is that of step {self.saved_step}"
            raise CheckpointError(
                f"the checkpoint of step {save.step} could not be saved: {reason}; "
                + (newest if self.saved_step else "earlier checkpoints are as they were")
            ) from save.error
        self._report("training goes on; the next checkpoint is tried when it is due")

    def _why_failed(self, save: _Save) -> tuple[str, bool]:
        """The reason, empty where the save went well, and whether to stop for it; the same on
        every worker. Collective.
        """
        error = save.error
        if error is not None:
            logging.getLogger(__name__).error("step %d not saved", save.step, exc_info=error)
        relayed = isinstance(error, WorkerError)
        full = isinstance(error, OSError) and error.errno in _NO_ROOM
        fatal = full or isinstance(error, CheckpointConflict)
        said = gather_texts("" if error is None else _message(error), self._group)
        flags = gather_texts(f"{int(relayed)}{int(fatal)}", self._group)
        failed = [rank for rank, text in enumerate(said) if text]
        # A worker's own error says more than what its peers heard of it.
        failed.sort(key=lambda rank: flags[rank][0])
        if not failed:
            return "", False
        rank = failed[0]
        by = f"worker {rank}: " if self._group.num_workers > 1 else ""
        return by + said[rank], any(flag[1] == "1" for flag in flags)

    def _flush(self) -> list[str]:
        """What is to be written before the checkpoint; a failure is only noted."""
        try:
            if self._beforehand is not None:
                self._beforehand()
        except Exception as exc:
            return [f"the metrics could not be written: {_message(exc)}"]
        return []

    def _prune(self) -> list[str]:
        """Remove old checkpoints; a failure is only noted, it harms nothing but space."""
        try:
            pruned = self._pruner.prune(self._damaged)
        except Exception as exc:
            return [f"old checkpoints could not be removed: {_message(exc)}"]
        if pruned.leftovers:
            return [f"removed what {len(pruned.leftovers)} unfinished saves had left behind"]
        return []


def _message(error: Exception) -> str:
    """One line; of another worker's error the last of its traceback."""
    if isinstance(error, WorkerError):
        return error.trace.strip().rsplit("\n", 1)[-1]
    plain = isinstance(error, UserError | StorageError | OSError)
    return str(error) if plain and str(error) else f"{type(error).__name__}: {error}"

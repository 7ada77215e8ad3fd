"""Saving while training goes on: the step stands still only while the rows are copied."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.manifest import (
    CheckpointError,
    CheckpointLate,
    IndexInfo,
    ManifestName,
)
from dist_embed.checkpoint.parts import Parts
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.save_under_way import Deadline, Outcome, Save, one_line, outcome_of
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import HostBuffers, TrainingState, own_rows
from dist_embed.checkpoint.write import (
    Description,
    manifest_of,
    new_attempt,
    publish,
    write_rows,
)
from dist_embed.parallel.collectives import (
    gather_texts,
    same_text_from_first,
    sum_over_workers,
)
from dist_embed.parallel.errors import WorkerError
from dist_embed.parallel.group import Group
from dist_embed.parallel.peers import peers_end_with_this_worker
from dist_embed.parallel.stop import stop_requested
from dist_embed.parallel.threads import WaitedThread
from dist_embed.storage.objects import ObjectStore

# While workers wait for a save they meet as often, so that none waits in an exchange for as long as
# another one writes or prunes.
MEETING_SECONDS = 0.5
# Without any news for so long worker 0 gives up waiting for the others, and they for worker 0,
# where the run ends by an error: a worker that was killed says nothing. Longer where there is more
# time to drain: it must be enough for a chunk.
QUIET_SECONDS = 10.0
# What a thread that is given up has to come to its end, between two calls of the group's store.
GIVE_UP_SECONDS = 1.0


class Saver:
    """Saves a run's state, one save at a time.

    Args:
        store: the run's ``checkpoints`` folder.
        group: this worker and its peers.
        settings: how.
        pruner: removes old checkpoints after each save; used on worker 0.
        damaged: manifests that the run went on without, see `load_newest`.
        report: takes lines for the user.
        buffers: host memory to copy into, which a load may have used.
        beforehand: is called before each save's bytes are written, behind training, on worker 0.
    """

    def __init__(
        self,
        store: ObjectStore,
        group: Group,
        settings: CheckpointSection,
        pruner: Pruner,
        *,
        damaged: frozenset[ManifestName] = frozenset(),
        report: Callable[[str], None],
        buffers: HostBuffers | None = None,
        beforehand: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._group = group
        self._settings = settings
        self._behind = settings.saving == "behind"
        self._pruner = pruner
        self._damaged = damaged  # until they are removed
        # Told as failed; of one whose reply was lost the manifest may be there.
        self._failed_attempts: set[str] = set()
        self._report = report
        self._beforehand = beforehand
        self._buffers = buffers or HostBuffers()
        self._under_way: Save | None = None
        # Concluded; its thread may still prune. While it does no other one takes its place.
        self._before: Save | None = None
        self._parts: Parts | None = None
        self._failures = 0
        self._last_reason = ""
        self._last_error: WorkerError | None = None
        self.saved_step = 0  # of the newest checkpoint that this saver has published

    def save(self, state: TrainingState, check: Callable[[], None] = lambda: None) -> None:
        """Begin to save ``state``; returns as soon as it may change again.

        ``check`` is called once the tensors are up to date; nothing is saved where it raises. A
        save still under way is waited for first. A failure is reported, and raised where more than
        ``max_failures`` saves in a row have failed, or the disk is full. Collective.
        """
        state.before_reading()
        check()
        self.wait()
        started = time.monotonic()
        rows = own_rows(state)
        if self._behind:
            rows = self._buffers.copies(rows)
        description = Description(
            step=state.step,
            fingerprint=state.fingerprint,
            tensors={name: tensor.info for name, tensor in state.tensors.items()},
            row_multipliers=state.row_multipliers,
            scalars_json=json.dumps(state.scalars, allow_nan=False),
        )
        attempt = same_text_from_first(new_attempt(state.step), self._group)
        save = Save(state.step, attempt, started, time.monotonic() - started)
        thread = save.thread = WaitedThread(
            target=self._carry_out, args=(save, description, rows), name="checkpoint", daemon=True
        )
        self._under_way = save
        try:
            thread.start()
        except BaseException:
            # After a signal it may run all the same; not where there is room for no more threads.
            if not thread.begun:
                self._under_way = None
            raise
        if not self._behind:
            self.wait()

    @property
    def has_ended(self) -> bool:
        """Whether this worker's part in the save under way has ended, well or not."""
        return self._under_way is not None and self._under_way.has_ended

    @property
    def step_under_way(self) -> int | None:
        """Of the save under way, if there is one: the same on every worker."""
        return None if self._under_way is None else self._under_way.step

    @property
    def may_hang(self) -> bool:
        """Whether this worker's part in the save under way has not come further for so long that it
        is to be waited for, which has an end: twice ``timeout_seconds``.
        """
        save = self._under_way
        if save is None or save.has_ended:
            return False
        return time.monotonic() - save.heard > 2 * self._settings.timeout_seconds

    def wait(self, limit_seconds: float | None = None) -> None:
        """Wait for the save under way, if any; raises as `save` does.

        Pruning is waited for too; if it takes longer than the limit it is broken off. Once any
        worker is asked to stop there are ``drain_seconds`` left, if not less.

        Raises:
            CheckpointLate: the save did not end within ``limit_seconds``; where that is None,
                within twice ``timeout_seconds`` after the last chunk that any worker has written: a
                slow store gets its time, one that hangs does not.

        Collective.
        """
        save = self._under_way
        if save is None:
            return
        assert save.thread is not None
        patient = limit_seconds is None
        deadline = Deadline(
            2 * self._settings.timeout_seconds if limit_seconds is None else limit_seconds
        )
        seen = 0
        while True:
            save.thread.join(max(0.0, min(deadline.left, MEETING_SECONDS)))
            flags = [
                save.has_ended, deadline.left <= 0, save.manifest is not None, stop_requested(),
                save.num_chunks,
            ]  # fmt: skip
            # What follows is decided by these sums alone, so that all workers do the same.
            ended, late, published, stops, num_chunks = sum_over_workers(
                torch.tensor(flags, dtype=torch.int64).to(self._group.device), self._group
            ).tolist()
            if ended == self._group.num_workers:
                break
            if stops:
                deadline.asked_to_stop(self._settings.drain_seconds)
            elif patient and num_chunks > seen:
                deadline.progress()
                seen = num_chunks
                continue
            if late and published:
                save.hurried.set()
                save.notes.append("old checkpoints are still being removed; it is broken off")
                break
            if late:
                save.overdue = True
                raise CheckpointLate(
                    f"the checkpoint of step {save.step} was not written within "
                    f"{deadline.seconds:.0f} s"
                )
        if not self._behind:
            save.stood_seconds = time.monotonic() - save.started
        self.conclude()

    def require(self, step: int) -> None:
        """Raise CheckpointError unless ``step`` has been saved: a run does not end well without its
        last checkpoint. Not collective, but the same on every worker.
        """
        if self.saved_step != step:
            raise CheckpointError(
                f"step {step} is trained but not saved: {self._last_reason}. Started again, the "
                "run trains it anew, from the newest checkpoint there is"
            ) from self._last_error

    def close(self) -> None:
        """Give the save under way its time, when the run ends by an error; then it is given up.

        One that `wait` has waited for in vain has had its time. Not collective.

        But under the local launcher the others wait for worker 0 too, who publishes: the first that
        ends with an error has all killed, by torchrun and Slurm after 30 s, if the user has said
        nothing else (torch 2.13, elastic/multiprocessing/api.py:_close; Slurm 22.05,
        ``--kill-on-bad-exit`` and KillWait), by Ray Train within seconds (2.60).
        """
        save = self._under_way
        if save is None or save.thread is None:
            return
        save.hurried.set()
        until = time.monotonic() + self._settings.drain_seconds
        others: WaitedThread | None = None
        try:
            if not save.overdue:
                save.thread.join(self._settings.drain_seconds)
                if save.has_ended and save.error is None and peers_end_with_this_worker():
                    others = WaitedThread(target=self._wait_for_first, daemon=True)
                    others.start()
                    others.join(max(0.0, until - time.monotonic()))
        finally:
            # A daemon thread that comes back from a call of the group's store while the
            # interpreter ends takes the process down (SIGABRT; torch 2.13, Python 3.11). So it
            # makes no more of them.
            save.given_up.set()
            for thread in (save.thread, others):
                if thread is not None:
                    thread.join(GIVE_UP_SECONDS)

    @property
    def _quiet_seconds(self) -> float:
        return max(QUIET_SECONDS, self._settings.drain_seconds / 2)

    def _wait_for_first(self) -> None:
        """Where this is not worker 0, wait until that has ended its part in the save."""
        if self._parts is not None and not self._group.is_first:
            # The store ends with worker 0, if it is hosted there.
            with suppress(RuntimeError, CheckpointError):
                self._parts.wait_until_over(self._quiet_seconds)

    def conclude(self) -> None:
        """Take in the save under way, which has ended on every worker. Raises as `save` does.

        Collective.
        """
        save = self._under_way
        assert save is not None
        self._under_way = None
        self._tell_late_notes()
        if self._before is None or self._before.has_ended:
            self._before = save
        error = save.error
        if error is not None:
            logging.getLogger(__name__).error("step %d not saved", save.step, exc_info=error)
        outcomes = [
            Outcome(**json.loads(text))
            for text in gather_texts(json.dumps(vars(outcome_of(save))), self._group)
        ]
        if outcomes[0].saved:
            self._failures = 0
            self._last_error = None
            self.saved_step = save.step
            self._report(f"step {save.step}: checkpoint saved ({outcomes[0].saved})")
            while save.notes:
                self._report(save.notes.pop(0))
            return
        self._failures += 1
        self._failed_attempts.add(save.attempt)
        # A worker's own error says more than what worker 0 has heard of it, and one for which the
        # run stops more than others.
        rank, worst = min(
            ((rank, outcome) for rank, outcome in enumerate(outcomes) if outcome.error),
            key=lambda found: (found[1].relayed, not found[1].fatal),
        )
        # So that every worker tells the same of whether it may pass. And what is kept has no trace,
        # whose frames would hold the bytes of chunks.
        self._last_error = WorkerError(rank, worst.error, is_passing=worst.passing)
        save.error = None
        if rank != self._group.rank:
            error = self._last_error
        by = f"worker {rank}: " if self._group.num_workers > 1 else ""
        reason = self._last_reason = by + worst.error
        self._report(f"step {save.step}: checkpoint NOT saved: {reason}")
        fatal = any(outcome.fatal for outcome in outcomes)
        if fatal or self._failures > self._settings.max_failures:
            newest = f"the newest checkpoint is that of step {self.saved_step}"
            raise CheckpointError(
                f"the checkpoint of step {save.step} could not be saved: {reason}; "
                + (newest if self.saved_step else "earlier checkpoints are as they were")
            ) from error
        self._report("training goes on; the next checkpoint is tried when it is due")

    def _carry_out(self, save: Save, description: Description, rows: list[Rows]) -> None:
        """What the thread of a save does: write, publish, prune. Errors wait for `conclude`."""
        try:
            if self._group.is_first:
                save.notes += self._flush()
            indexes = self._write(save, rows)
            if not self._group.is_first:
                return
            manifest = manifest_of(description, save.attempt, self._group.num_workers, indexes)
            publish(self._store, manifest, damaged=self._damaged, own=self._failed_attempts)
            save.published = save.heard = time.monotonic()
            save.manifest = manifest
        except Exception as exc:
            save.error = exc
            return
        finally:
            if self._parts is not None and self._group.is_first:
                with suppress(RuntimeError, CheckpointError):
                    self._parts.note_over()
        save.notes += self._prune(save)

    def _write(self, save: Save, rows: list[Rows]) -> list[IndexInfo]:
        """Write this worker's part; on worker 0 returns all workers' indexes."""
        parts: Parts | None = None
        if self._group.num_workers > 1:
            parts = self._parts = Parts(save.attempt, self._group, self._parts, save.go_on)

        def on_chunk() -> None:
            save.num_chunks += 1
            save.heard = time.monotonic()
            save.go_on()
            if parts is not None:
                with suppress(RuntimeError):  # only the last note decides
                    parts.note_progress()

        try:
            indexes = write_rows(
                self._store, save.attempt, rows, self._group.rank, on_chunk=on_chunk
            )
        except Exception:
            if parts is not None:
                # What has failed first is the cause.
                with suppress(RuntimeError, CheckpointError):
                    parts.note_failed()
            raise
        if parts is None:
            return indexes
        parts.note_written(indexes)
        if not self._group.is_first:
            return indexes
        return parts.collect(
            self._settings.timeout_seconds,
            self._quiet_seconds,
            hurried=save.hurried,
        )

    def _flush(self) -> list[str]:
        """What is to be written before the checkpoint; a failure is only noted."""
        try:
            if self._beforehand is not None:
                self._beforehand()
        except Exception as exc:
            return [f"the metrics could not be written: {one_line(exc)}"]
        return []

    def _tell_late_notes(self) -> None:
        """How pruning that was broken off has ended, which nobody has waited for."""
        before = self._before
        while before is not None and before.has_ended and before.notes:
            self._report(f"step {before.step}: {before.notes.pop(0)}")

    def _prune(self, save: Save) -> list[str]:
        """Remove old checkpoints; a failure is only noted, it harms nothing but space."""
        # Its own save where `wait` has just broken off what begins here.
        before = self._before
        if before is not None and before is not save and not before.has_ended:
            return ["old checkpoints are not removed: the store has not answered yet"]
        try:
            pruned = self._pruner.prune(self._damaged, go_on=lambda: not save.hurried.is_set())
        except Exception as exc:
            return [f"old checkpoints could not be removed: {one_line(exc)}"]
        self._damaged = frozenset()
        if pruned.leftovers:
            return [f"removed what {len(pruned.leftovers)} unfinished saves had left behind"]
        return []

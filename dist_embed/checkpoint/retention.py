"""Which checkpoints stay, and removing the others and what dead attempts left behind.

A manifest goes first, then the objects: what is half removed is no checkpoint. Nothing here is
collective; worker 0 calls it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from dist_embed.checkpoint.catalogue import loss_of, manifest_names, read_manifest
from dist_embed.checkpoint.manifest import (
    MANIFESTS,
    OBJECTS,
    CheckpointDamaged,
    CheckpointError,
    Manifest,
    ManifestName,
)
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.storage.objects import ObjectStore

_ATTEMPT = re.compile(r"step-(\d{9,15})-(\d{8}T\d{6}Z)-[0-9a-f]{8}", re.ASCII)


def kept_steps(settings: CheckpointSection, losses: dict[int, float | None]) -> set[int]:
    """Which of the steps, given with their validation losses, stay: the newest, those with the
    lowest losses, and those of steps divisible by a number, as is set. Never none, but then the
    newest.
    """
    steps = sorted(losses)
    kept = set(steps[-settings.keep_last :]) if settings.keep_last else set()
    known = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    kept |= {step for _, step in known[: settings.keep_best]}
    if settings.keep_every:
        kept |= {step for step in steps if step % settings.keep_every == 0}
    return kept or set(steps[-1:])


@dataclass
class Pruned:
    """What was removed: steps of checkpoints, names of attempts."""

    steps: list[int] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


class Pruner:
    """Prunes one run's checkpoints, reading each manifest once however often it is called.

    Args:
        store: its ``checkpoints`` folder.
        settings: what stays, and at which age what no manifest refers to is removed.
    """

    def __init__(self, store: ObjectStore, settings: CheckpointSection) -> None:
        self._store = store
        self._settings = settings
        self._known: dict[ManifestName, Manifest] = {}

    def prune(
        self,
        damaged: frozenset[ManifestName] = frozenset(),
        *,
        dry: bool = False,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Pruned:
        """Remove what need not stay; with ``dry`` only say what that would be.

        Args:
            damaged: manifests that a run found damaged and went on without: they do not count and
                are removed. Others that cannot be proven are left alone, with their objects.
            dry: remove nothing.
            go_on: is asked before each removal.

        Raises:
            CheckpointError: it was not to go on; some may be removed.
            StoreUnavailable, OSError: as the store does.
        """
        # Attempts first: one that is published in between is then found among the manifests.
        attempts = self._store.names(OBJECTS)
        names = manifest_names(self._store)
        unreadable = self._read(names)
        current = {name.step: name for name in names if name in self._known and name not in damaged}
        losses = {step: loss_of(self._known[name]) for step, name in current.items()}
        kept = kept_steps(self._settings, losses)
        referred = {m.attempt for m in self._known.values()}
        pruned = Pruned()
        for name in names:
            if name in unreadable and name not in damaged:
                continue
            if name.step not in kept or current.get(name.step) != name:
                pruned.steps.append(name.step)
                if not dry:
                    _ask(go_on)
                    self._remove(name)
        protected = {name.step for name in unreadable - damaged}
        for attempt in attempts:
            if attempt not in referred and self._is_leftover(attempt, protected):
                pruned.leftovers.append(attempt)
                if not dry:
                    _ask(go_on)
                    self._store.remove_folder(f"{OBJECTS}/{attempt}")
        if not dry:
            self._store.remove_halves(MANIFESTS, self._before)
        return pruned

    def _read(self, names: list[ManifestName]) -> set[ManifestName]:
        """Read the manifests not read before; returns those that cannot be proven."""
        unreadable = set()
        for gone in set(self._known) - set(names):
            del self._known[gone]
        for name in names:
            if name not in self._known:
                try:
                    self._known[name] = read_manifest(self._store, name)
                except CheckpointDamaged:
                    unreadable.add(name)
        return unreadable

    def _remove(self, name: ManifestName) -> None:
        self._store.remove(name.path)
        manifest = self._known.pop(name, None)
        # Only a forged manifest names the objects of another.
        others = {other.attempt for other in self._known.values()}
        if manifest is not None and manifest.attempt not in others:
            self._store.remove_folder(f"{OBJECTS}/{manifest.attempt}")

    def _is_leftover(self, attempt: str, protected: set[int]) -> bool:
        """Whether an attempt without a manifest is dead: begun, and last written to, long ago."""
        match = _ATTEMPT.fullmatch(attempt)
        if match is None or int(match[1]) in protected:
            return False
        try:
            began = datetime.strptime(match[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        except ValueError:  # no date: not a name of ours
            return False
        if began.timestamp() > self._before:
            return False
        entries = self._store.entries(f"{OBJECTS}/{attempt}")
        if not entries and not self._store.is_local:
            # A server with folders behind it (rclone 1.75.2, serve s3) lists one that an upload cut
            # short has left; it holds nothing, and no call removes it.
            return False
        return all(entry.modified < self._before for entry in entries)

    @property
    def _before(self) -> float:
        """When what is left over was last written to, at the latest."""
        return time.time() - self._settings.leftover_hours * 3600


def _ask(go_on: Callable[[], bool]) -> None:
    if not go_on():
        raise CheckpointError("broken off, there was no time for it")

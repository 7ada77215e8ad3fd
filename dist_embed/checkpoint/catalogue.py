"""Which checkpoints a run has. Only manifests are looked at: one exists when its manifest does."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from dist_embed.checkpoint.manifest import (
    MANIFESTS,
    MAX_MANIFEST_BYTES,
    METRIC,
    CheckpointDamaged,
    CheckpointError,
    Manifest,
    ManifestName,
    parse_manifest,
)
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ForeignObject, ObjectStore
from dist_embed.streams import say

T = TypeVar("T")

# How often manifests are listed until one of them can be read. Each time a training must have
# pruned all that were listed before.
LISTINGS = 5


def open_checkpoints(run_uri: str, *, retry_seconds: float | None = None) -> ObjectStore:
    """The store of a run's checkpoints."""
    return ObjectStore(storage.join(run_uri, "checkpoints"), retry_seconds=retry_seconds)


def manifest_names(store: ObjectStore) -> list[ManifestName]:
    """All manifests, ascending by step and generation."""
    parsed = (ManifestName.parse(name) for name in store.names(MANIFESTS))
    return sorted(name for name in parsed if name is not None)


def current_names(store: ObjectStore) -> list[ManifestName]:
    """The manifest that counts of each step, ascending."""
    newest = {name.step: name for name in manifest_names(store)}
    return list(newest.values())


def list_steps(run_uri: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    return [name.step for name in current_names(open_checkpoints(run_uri))]


def read_manifest(store: ObjectStore, name: ManifestName) -> Manifest:
    """One manifest, proven.

    Raises:
        CheckpointDamaged: it is missing, or not what was written.
        StoreUnavailable, OSError: it could not be read.
    """
    origin = f"{store.uri}/{name.path}"
    try:
        data = store.read(name.path, 0, MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointDamaged(f"{origin} does not exist") from None
    except ForeignObject as exc:
        raise CheckpointDamaged(f"{origin}: {exc}") from exc
    if len(data) > MAX_MANIFEST_BYTES:
        raise CheckpointDamaged(f"{origin}: larger than any manifest ({MAX_MANIFEST_BYTES} bytes)")
    manifest = parse_manifest(data, origin)
    if manifest.step != name.step:
        raise CheckpointDamaged(f"{origin}: holds the manifest of step {manifest.step}")
    return manifest


def name_of_step(run_uri: str, step: int) -> ManifestName:
    """The manifest that counts of one step. Raises CheckpointError where there is none."""
    names = {name.step: name for name in current_names(open_checkpoints(run_uri))}
    if step not in names:
        raise CheckpointError(
            f"{run_uri} has no complete checkpoint of step {step}"
            + (f"; there are {', '.join(map(str, names))}" if names else "")
        )
    return names[step]


def name_of_choice(
    run_uri: str, step: int | None, report: Callable[[str], None] | None = None
) -> ManifestName:
    """The manifest that counts of ``step``; where that is None, the one with the lowest validation
    loss, or where none has a loss, the newest.

    Without a step it is one of `sound_manifests`. Raises CheckpointError where there is none.
    """
    if step is not None:
        return name_of_step(run_uri, step)
    sound = sound_manifests(run_uri, report)
    losses = {name: loss_of(manifest) for name, manifest in sound.items()}
    known = [(loss, name) for name, loss in losses.items() if loss is not None]
    return min(known)[1] if known else max(sound)


def use_choice(run_uri: str, step: int | None, use: Callable[[ObjectStore, ManifestName], T]) -> T:
    """What ``use`` returns for the manifest that `name_of_choice` takes.

    If no step is asked for and a training prunes that one meanwhile, another is chosen, and ``use``
    called anew.

    Raises as `name_of_choice` and ``use``. Not collective.
    """
    store = open_checkpoints(run_uri)
    left = LISTINGS
    while True:
        left -= 1
        name = name_of_choice(run_uri, step)
        try:
            return use(store, name)
        except CheckpointDamaged:
            if not left or step is not None or name in manifest_names(store):
                raise


def sound_manifests(
    run_uri: str, report: Callable[[str], None] | None = None
) -> dict[ManifestName, Manifest]:
    """Of each step the newest manifest that can be proven; ``report`` (default: to standard error)
    is told of the others. Raises CheckpointError where there is none.
    """
    store, report = open_checkpoints(run_uri), report or say
    names = manifest_names(store)
    for _ in range(LISTINGS):
        sound: dict[int, tuple[ManifestName, Manifest]] = {}
        damaged: dict[ManifestName, CheckpointDamaged] = {}
        for name in names:
            try:
                sound[name.step] = name, read_manifest(store, name)
            except CheckpointDamaged as exc:
                damaged[name] = exc
        # Beside a training that prunes, what has been listed may be gone before it is read.
        listed, names = names, manifest_names(store) if damaged else names
        if sound or names == listed:
            break
    for name, why in damaged.items():
        if name in names:
            report(f"the checkpoint of step {name.step} is damaged and not considered: {why}")
    if not sound:
        raise CheckpointError(f"{run_uri} has no complete checkpoint")
    return dict(sound.values())


def best_loss(store: ObjectStore, *, but: frozenset[ManifestName] = frozenset()) -> float:
    """The lowest validation loss of a run's checkpoints, but for those with damaged manifests and
    ``but``; infinite where none has one. Raises StoreUnavailable, OSError.
    """
    losses = [math.inf]
    for name in current_names(store):
        if name in but:
            continue
        with suppress(CheckpointDamaged):  # or removed meanwhile
            loss = loss_of(read_manifest(store, name))
            losses += [] if loss is None else [loss]
    return min(losses)


def loss_of(manifest: Manifest) -> float | None:
    """The validation loss saved with a checkpoint, if any."""
    loss = manifest.scalars.get(METRIC)
    try:
        return float(loss) if isinstance(loss, (int, float)) else None
    except OverflowError:  # an integer of hundreds of digits
        return None

"""Which checkpoints a run has. Only manifests are looked at: one exists when its manifest does."""

from __future__ import annotations

from dist_embed.checkpoint.manifest import (
    MANIFESTS,
    MAX_MANIFEST_BYTES,
    CheckpointDamaged,
    CheckpointError,
    Manifest,
    ManifestName,
    parse_manifest,
)
from dist_embed.checkpoint.state import METRIC
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ForeignObject, ObjectStore
from dist_embed.storage.retry import RETRY_SECONDS


def open_checkpoints(run_uri: str, *, retry_seconds: float = RETRY_SECONDS) -> ObjectStore:
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


def name_of_choice(run_uri: str, step: int | None) -> ManifestName:
    """The manifest that counts of ``step``, or of `best_step` where that is None.

    Raises CheckpointError where there is none.
    """
    chosen = best_step(run_uri) if step is None else step
    if chosen is None:
        raise CheckpointError(f"{run_uri} has no complete checkpoint")
    return name_of_step(run_uri, chosen)


def best_step(run_uri: str) -> int | None:
    """Step of the checkpoint with the lowest validation loss; without any loss, the newest; None
    where there is no checkpoint.
    """
    store = open_checkpoints(run_uri)
    names = current_names(store)
    losses = [(loss_of(read_manifest(store, name)), name.step) for name in names]
    known = [(loss, step) for loss, step in losses if loss is not None]
    if known:
        return min(known)[1]
    return names[-1].step if names else None


def loss_of(manifest: Manifest) -> float | None:
    """The validation loss saved with a checkpoint, if any."""
    loss = manifest.scalars.get(METRIC)
    try:
        return float(loss) if isinstance(loss, (int, float)) else None
    except OverflowError:  # an integer of hundreds of digits
        return None

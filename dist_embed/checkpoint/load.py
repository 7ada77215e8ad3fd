"""Loading a checkpoint into live tensors: staged and proven as a whole, then copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dist_embed.checkpoint.catalogue import (
    LISTINGS,
    manifest_names,
    name_of_choice,
    open_checkpoints,
    read_manifest,
)
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.manifest import (
    CheckpointDamaged,
    CheckpointError,
    Manifest,
    ManifestName,
    manifest_bytes,
    parse_manifest,
)
from dist_embed.checkpoint.read import CheckpointReader, describe_tensor
from dist_embed.checkpoint.state import HostBuffers, TrainingState, own_rows, owners
from dist_embed.parallel.collectives import copy_from_worker, gather_texts, same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore


@dataclass(frozen=True)
class Loaded:
    """What was loaded.

    Attributes:
        step: of the loaded checkpoint; 0 where the run has none.
        damaged: newer ones that were refused.
        bytes_read: by this worker.
    """

    step: int
    damaged: frozenset[ManifestName]
    bytes_read: int


def load_newest(
    store: ObjectStore,
    state: TrainingState,
    report: Callable[[str], None],
    *,
    buffers: HostBuffers | None = None,
    in_place: bool = False,
) -> Loaded:
    """Load the newest checkpoint whose every byte needed is proven.

    Damaged ones are passed over, which ``report`` is told. A store that does not answer is no
    damage: that raises. ``buffers``, ``in_place``: see `load_checkpoint`.

    Raises:
        CheckpointError: on every worker, when all are damaged, or the newest sound one does not
            fit the state.

    Collective.
    """
    with all_or_none(state.group):
        names = manifest_names(store) if state.group.is_first else []
    damaged: list[ManifestName] = []
    reasons: list[str] = []
    lines = same_text_from_first("\n".join(f"{n.step} {n.generation}" for n in names), state.group)
    for line in reversed(lines.splitlines()):
        step, generation = map(int, line.split())
        name = ManifestName(step, generation)
        try:
            read = load_checkpoint(store, name, state, buffers=buffers, in_place=in_place)
        except CheckpointDamaged as exc:
            damaged.append(name)
            reasons.append(str(exc))
            report(f"the checkpoint of step {step} is damaged and not used: {exc}")
            continue
        return Loaded(step, frozenset(damaged), read)
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {store.uri} is damaged:\n  " + "\n  ".join(reasons) + "\n"
            "Give run.uri another folder to train from scratch"
        )
    return Loaded(0, frozenset(), 0)


def load_chosen(
    run_uri: str,
    step: int | None,
    state: TrainingState,
    report: Callable[[str], None],
    *,
    in_place: bool = False,
) -> int:
    """Load what inference needs of a run's checkpoint: that of ``step``, or where that is None the
    one that `name_of_choice` takes. If a training prunes that one meanwhile, another is chosen.

    Returns the step. Raises as `name_of_choice` and `load_checkpoint`. Collective.
    """
    store, group = open_checkpoints(run_uri), state.group
    left = LISTINGS
    while True:
        left -= 1
        text = ""
        with all_or_none(group):
            if group.is_first:  # for all: the run may be saving and pruning
                found = name_of_choice(run_uri, step, report)
                text = f"{found.step} {found.generation}"
        name = ManifestName(*map(int, same_text_from_first(text, group).split()))
        try:
            load_checkpoint(store, name, state, partial=True, in_place=in_place)
        except CheckpointDamaged:
            gone = ""
            with all_or_none(group):
                if group.is_first and name not in manifest_names(store):
                    gone = "gone"
            if not left or step is not None or not same_text_from_first(gone, group):
                raise
        else:
            return name.step


def load_checkpoint(
    store: ObjectStore,
    name: ManifestName,
    state: TrainingState,
    *,
    partial: bool = False,
    buffers: HostBuffers | None = None,
    in_place: bool = False,
) -> int:
    """Load one checkpoint, written by any number of workers, into ``state``, in place.

    With ``partial`` it may hold more tensors than the state, as for translation, which needs no
    optimizer. Every worker reads and proves its rows and its share of the replicated tensors into
    memory of its own, that of ``buffers`` if given; only when all have, live tensors change, and
    the others get replicated tensors from the worker that has read them. With ``in_place`` it takes
    no such memory: it reads everything twice, first to prove it, then, proving it again, into the
    live tensors; one that is not on the CPU, or not contiguous, through a copy. Returns the bytes
    this worker read.

    Raises, on every worker and with ``state`` as it was (unless, with ``in_place``, the second
    reading fails: a part of it has been overwritten then):
        CheckpointDamaged: something is missing or not what was saved.
        CheckpointError: it does not fit the state.
        StoreUnavailable, OSError: it could not be read.

    Collective.
    """
    group = state.group
    staged: list[Rows] = []
    manifest: Manifest | None = None
    text = ""
    with _damage_shared(group):
        if group.is_first:
            manifest = read_manifest(store, name)
            text = manifest_bytes(manifest).decode()
    # One read for all, and surely the same for all.
    text = same_text_from_first(text, group)
    with _damage_shared(group):
        manifest = manifest or parse_manifest(text.encode(), f"{store.uri}/{name.path}")
        _check_fits(manifest, state, store, partial)
        reader = CheckpointReader(store, manifest)
        live = own_rows(state)
        if in_place:
            reader.prove(live)
        else:
            staged = (buffers or HostBuffers()).unfilled(live)
            reader.fill(staged)
    if in_place:
        with _damage_shared(group):
            _fill_in_place(reader, live)
    for rows in staged:
        state.tensors[rows.tensor].data.copy_(rows.data)
    for key, rank in owners(state).items():
        copy_from_worker(state.tensors[key].data, rank, group)
    state.after_writing()
    state.step = manifest.step
    state.scalars = manifest.scalars | state.fixed_scalars
    return reader.bytes_read


def _fill_in_place(reader: CheckpointReader, live: list[Rows]) -> None:
    """Fill live tensors; those that cannot be read into, one after the other through a copy."""

    def is_plain(rows: Rows) -> bool:
        return rows.data.device.type == "cpu" and rows.data.is_contiguous()

    reader.fill([rows for rows in live if is_plain(rows)])
    for rows in live:
        if not is_plain(rows):
            staged = HostBuffers().unfilled([rows])
            reader.fill(staged)
            rows.data.copy_(staged[0].data)


@contextmanager
def _damage_shared(group: Group) -> Iterator[None]:
    """`all_or_none`, where damage that any worker finds is raised as such on every one. Collective
    at the end of the block.
    """
    damage = ""
    with all_or_none(group):
        try:
            yield
        except CheckpointDamaged as exc:
            damage = str(exc)
    for found in gather_texts(damage, group):
        if found:
            raise CheckpointDamaged(found)


def _check_scalars(saved: dict[str, Any], state: TrainingState, where: str) -> None:
    """What the state has before anything is loaded, a checkpoint has in the same form."""
    for name, ours in state.scalars.items():
        theirs = saved.get(name, None if name not in state.must_equal else ours)
        parts = [(theirs, ours)]
        if isinstance(theirs, dict) and isinstance(ours, dict):
            parts += [(theirs[key], ours[key]) for key in theirs.keys() & ours.keys()]
        for there, here in parts:
            if type(there) is not type(here) or (isinstance(there, int) and there < 0):
                raise CheckpointDamaged(f"{name} is {str(theirs)[:80]} in {where}")


def _check_fits(
    manifest: Manifest, state: TrainingState, store: ObjectStore, partial: bool
) -> None:
    saved, wanted = manifest.tensors, {name: t.info for name, t in state.tensors.items()}
    where = f"the checkpoint of step {manifest.step} in {store.uri}"
    for name, fixed in state.must_equal.items():
        there = str(manifest.scalars.get(name, fixed.value))  # older ones do not say
        if there != fixed.value:
            raise CheckpointError(f"{where} {fixed.otherwise(there)}")
    for name in {**saved, **wanted}:
        if name not in wanted:
            if partial:
                continue
            raise CheckpointError(f"{where} holds {name}, which the model or tables here have not")
        if name not in saved:
            raise CheckpointError(f"{where} has no {name}, which the model or tables here need")
        if saved[name] != wanted[name]:
            type_alone = saved[name].shape == wanted[name].shape
            raise CheckpointError(
                f"{where} holds {name} as {describe_tensor(saved[name])}; asked for is "
                f"{describe_tensor(wanted[name])}"
                + (" (tables' rows are of the type `embedding.weights`, or `weights`)" * type_alone)
            )
    if not partial:
        _check_scalars(manifest.scalars, state, where)
    if manifest.row_multipliers != state.row_multipliers:
        raise CheckpointError(
            f"{where} was written with another order of rows: {manifest.row_multipliers}; "
            f"this version uses {state.row_multipliers}"
        )

"""Saving, finding, loading and pruning the checkpoints of a run.

Each worker writes the rows it holds into an object of its own; worker 0 adds the replicated
tensors. Names are unique per attempt, so an attempt never touches what an earlier one wrote. After
all workers have reported success worker 0 writes the manifest.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dist_embed.checkpoint.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    Manifest,
    ObjectInfo,
    TableInfo,
    TablePart,
)
from dist_embed.checkpoint.tensor_file import TensorFile, encode
from dist_embed.embedding.lookup import RowLookup
from dist_embed.embedding.tables import shard_of
from dist_embed.parallel.collectives import gather_texts, same_text_from_first
from dist_embed.parallel.errors import all_or_none
from dist_embed.storage import uri as storage

METRIC = "validation_loss"


@dataclass
class TrainingState:
    """All that a run needs to go on.

    Attributes:
        step: optimizer steps done.
        lookup: the tables and their optimizer's state; read and written in place.
        dense: replicated tensors by name; read and written in place.
        scalars: counters and the loader's position.
    """

    step: int
    lookup: RowLookup
    dense: dict[str, Tensor]
    scalars: dict[str, Any] = field(default_factory=dict)


def list_checkpoints(run_uri: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending. Reads names only."""
    steps = []
    for name in storage.list_names(_root(run_uri)):
        number = name.removeprefix("step-")
        manifest = storage.join(_root(run_uri), name, MANIFEST_NAME)
        if name.startswith("step-") and number.isdigit() and storage.exists(manifest):
            steps.append(int(number))
    return sorted(steps)


def read_manifest(run_uri: str, step: int) -> Manifest:
    """The manifest of one checkpoint. Raises CheckpointError."""
    uri = storage.join(_folder(run_uri, step), MANIFEST_NAME)
    try:
        text = storage.read_text(uri)
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"cannot read {uri}: {exc}") from exc
    return Manifest.from_json(text, uri)


def best_checkpoint(run_uri: str) -> int | None:
    """Step of the complete checkpoint with the lowest validation loss; without any loss, the
    newest; None where there is no checkpoint.
    """
    steps = list_checkpoints(run_uri)
    losses = {step: read_manifest(run_uri, step).scalars.get(METRIC) for step in steps}
    known = [(loss, step) for step, loss in losses.items() if loss is not None]
    if known:
        return min(known)[1]
    return steps[-1] if steps else None


def save_checkpoint(run_uri: str, state: TrainingState) -> int:
    """Write one checkpoint; returns its bytes.

    Raises:
        CheckpointError: on every worker when any worker could not write; nothing is published
            and earlier checkpoints stay as they are.

    Collective.
    """
    group = state.lookup.group
    folder = _folder(run_uri, state.step)
    attempt = same_text_from_first(uuid.uuid4().hex[:12], group)
    written: list[ObjectInfo] = []
    with all_or_none(group):
        tables: dict[str, Tensor] = {}
        for name in state.lookup.specs:
            tables[f"{name}.weight"] = state.lookup.weight(name)
            for key, value in state.lookup.optimizer_state(name).items():
                tables[f"{name}.{key}"] = value
        written.append(_write(folder, _table_object(attempt, group.rank), tables))
        if group.is_first:
            written.append(_write(folder, f"{attempt}/dense.safetensors", state.dense))
    lines = "\n".join(f"{o.name}\t{o.size_bytes}\t{o.sha256}" for o in written)
    objects = []
    for text in gather_texts(lines, group):
        for line in text.splitlines():
            name, size, digest = line.split("\t")
            objects.append(ObjectInfo(name, int(size), digest))
    manifest = Manifest(
        step=state.step,
        num_workers=group.num_workers,
        objects=objects,
        dense_object=f"{attempt}/dense.safetensors",
        tables=_describe_tables(state.lookup, attempt),
        scalars=state.scalars,
    )
    with all_or_none(group):
        if group.is_first:
            try:
                storage.write_text(storage.join(folder, MANIFEST_NAME), manifest.to_json())
            except OSError as exc:
                raise CheckpointError(f"cannot write {folder}/{MANIFEST_NAME}: {exc}") from exc
    return manifest.size_bytes


def load_checkpoint(run_uri: str, step: int, state: TrainingState) -> None:
    """Load a checkpoint written by any number of workers into ``state``, in place.

    Raises:
        CheckpointError: on every worker, when it does not fit or cannot be read.

    Collective.
    """
    with all_or_none(state.lookup.group):
        manifest = read_manifest(run_uri, step)
        _check_tables(manifest, state.lookup, run_uri)
        folder = _folder(run_uri, step)
        files: dict[str, TensorFile] = {}
        for name, table in manifest.tables.items():
            targets = {"weight": state.lookup.weight(name)} | state.lookup.optimizer_state(name)
            for key, target in targets.items():
                if key not in table.tensors:
                    raise CheckpointError(
                        f"{folder}: table {name!r} was saved without {key!r}; it holds "
                        f"{', '.join(table.tensors)}. Another embedding.optimizer?"
                    )
                _load_rows(
                    target, f"{name}.{key}", table, state.lookup.shards[name].first_row,
                    lambda object_name: _file(files, folder, manifest, object_name),
                )  # fmt: skip
        dense = _file(files, folder, manifest, manifest.dense_object)
        if set(dense.names()) != set(state.dense):
            differing = sorted(set(dense.names()) ^ set(state.dense))
            raise CheckpointError(
                f"{folder}: the saved model differs from the configured one in {differing[:4]}"
            )
        for name, target in state.dense.items():
            value = dense.tensor(name)
            if value.shape != target.shape:
                raise CheckpointError(
                    f"{folder}: {name} has shape {list(value.shape)}, "
                    f"the configured model {list(target.shape)}"
                )
            target.copy_(value)
        state.step = manifest.step
        state.scalars = manifest.scalars


def prune_checkpoints(run_uri: str, *, keep_last: int, keep_best: int) -> list[int]:
    """Remove all but the newest ``keep_last`` and the ``keep_best`` with the lowest loss.

    The manifest goes first, so that what is half removed is no checkpoint. Not collective: worker
    0 calls it. Returns the removed steps.
    """
    steps = list_checkpoints(run_uri)
    kept = set(steps[-keep_last:])
    losses = [(read_manifest(run_uri, step).scalars.get(METRIC), step) for step in steps]
    known = sorted((loss, step) for loss, step in losses if loss is not None)
    kept |= {step for _, step in known[:keep_best]}
    removed = [step for step in steps if step not in kept]
    for step in removed:
        storage.remove(storage.join(_folder(run_uri, step), MANIFEST_NAME))
        storage.remove(_folder(run_uri, step))
    return removed


def _root(run_uri: str) -> str:
    return storage.join(run_uri, "checkpoints")


def _folder(run_uri: str, step: int) -> str:
    return storage.join(_root(run_uri), f"step-{step:09d}")


def _table_object(attempt: str, rank: int) -> str:
    return f"{attempt}/tables-{rank:05d}.safetensors"


def _write(folder: str, name: str, tensors: dict[str, Tensor]) -> ObjectInfo:
    data = encode(tensors)
    uri = storage.join(folder, name)
    try:
        storage.write_bytes(uri, data)
    except OSError as exc:
        raise CheckpointError(f"cannot write {uri}: {exc}") from exc
    return ObjectInfo(name, len(data), hashlib.sha256(data).hexdigest())


def _describe_tables(lookup: RowLookup, attempt: str) -> dict[str, TableInfo]:
    num_workers = lookup.group.num_workers
    described = {}
    for name, spec in lookup.specs.items():
        parts = []
        for rank in range(num_workers):
            shard = shard_of(spec.num_rows, rank, num_workers)
            if shard.num_rows:
                parts.append(
                    TablePart(_table_object(attempt, rank), shard.first_row, shard.num_rows)
                )
        tensors = ["weight", *lookup.optimizer_state(name)]
        described[name] = TableInfo(spec.num_rows, spec.width, tensors, parts)
    return described


def _check_tables(manifest: Manifest, lookup: RowLookup, run_uri: str) -> None:
    saved = {name: (table.num_rows, table.width) for name, table in manifest.tables.items()}
    configured = {name: (spec.num_rows, spec.width) for name, spec in lookup.specs.items()}
    if saved != configured:
        raise CheckpointError(
            f"checkpoint of step {manifest.step} in {run_uri} holds tables (rows, width) {saved}; "
            f"the configuration asks for {configured}"
        )


def _file(files: dict[str, TensorFile], folder: str, manifest: Manifest, name: str) -> TensorFile:
    if name not in files:
        info = manifest.object_named(name)
        files[name] = TensorFile(storage.join(folder, name), info.size_bytes)
    return files[name]


def _load_rows(
    target: Tensor,
    name: str,
    table: TableInfo,
    first_row: int,
    open_object: Callable[[str], TensorFile],
) -> None:
    """Fill ``target`` [R, ...], which holds rows from ``first_row`` on, from the saved parts."""
    end_row = first_row + target.shape[0]
    filled = 0
    for part in table.parts:
        start = max(first_row, part.first_row)
        end = min(end_row, part.first_row + part.num_rows)
        if start < end:
            rows = open_object(part.object_name).rows(name, start - part.first_row, end - start)
            target[start - first_row : end - first_row].copy_(rows)
            filled += end - start
    if filled != target.shape[0]:
        raise CheckpointError(f"{name}: the parts hold {filled} of {target.shape[0]} rows")

"""``dist-embed checkpoint``: list, verify, prune and inspect a run's checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = commands.add_parser("checkpoint", help="look at a run's checkpoints")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, call: Callable[[argparse.Namespace], None], text: str) -> Any:
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("run", metavar="RUN", help="the run's folder or URL")
        action.set_defaults(call=call)
        return action

    add("list", _list, "the complete checkpoints of a run")
    verify = add("verify", _verify, "read and prove every byte")
    verify.add_argument("--step", type=int, help="this checkpoint; default: all")
    prune = add("prune", _prune, "remove checkpoints that the run need not keep")
    prune.add_argument("--keep-last", type=int, help="instead of checkpoint.keep_last")
    prune.add_argument("--keep-best", type=int, help="instead of checkpoint.keep_best")
    prune.add_argument("--keep-every", type=int, help="instead of checkpoint.keep_every")
    prune.add_argument(
        "--leftover-hours", type=float,
        help="instead of checkpoint.leftover_hours; 0 only while no run saves there",
    )  # fmt: skip
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    inspect = add("inspect", _inspect, "what a checkpoint holds")
    inspect.add_argument("--step", type=int, help="default: the newest")


def _list(arguments: argparse.Namespace) -> None:
    from dist_embed.checkpoint.catalogue import (
        current_names,
        loss_of,
        open_checkpoints,
        read_manifest,
    )
    from dist_embed.checkpoint.manifest import CheckpointDamaged
    from dist_embed.cli.table import print_table

    _check_run(arguments.run)
    store = open_checkpoints(arguments.run)
    names = current_names(store)
    if not names:
        print(f"no complete checkpoint in {arguments.run}")
        return
    rows = []
    for name in names:
        try:
            manifest = read_manifest(store, name)
        except CheckpointDamaged:
            if name in current_names(store):  # else the run has pruned it meanwhile
                rows.append([str(name.step), "", "", "", "manifest damaged"])
            continue
        loss = loss_of(manifest)
        rows.append(
            [
                str(name.step),
                manifest.created,
                str(manifest.num_workers),
                f"{manifest.size_bytes / 2**20:.1f}",
                "" if loss is None else f"{loss:.4f}",
            ]
        )
    print_table(["step", "saved (UTC)", "workers", "MiB", "validation loss"], rows)


def _verify(arguments: argparse.Namespace) -> None:
    from dist_embed.checkpoint.catalogue import (
        current_names,
        name_of_step,
        open_checkpoints,
        read_manifest,
    )
    from dist_embed.checkpoint.manifest import CheckpointDamaged, CheckpointError
    from dist_embed.checkpoint.read import CheckpointReader

    _check_run(arguments.run)
    store = open_checkpoints(arguments.run)
    names = current_names(store)
    if arguments.step is not None:
        names = [name_of_step(arguments.run, arguments.step)]
    damaged = 0
    for name in names:
        try:
            reader = CheckpointReader(store, read_manifest(store, name))
            reader.verify()
            print(f"step {name.step}: sound, {reader.bytes_read / 2**20:.1f} MiB read and proven")
        except CheckpointDamaged as exc:
            if name not in current_names(store):
                print(f"step {name.step}: removed meanwhile")
                continue
            damaged += 1
            print(f"step {name.step}: DAMAGED: {exc}")
    if not names:
        raise CheckpointError(f"no complete checkpoint in {arguments.run}")
    if damaged:
        raise CheckpointError(f"{damaged} of {len(names)} checkpoints are damaged")


def _prune(arguments: argparse.Namespace) -> None:
    from dist_embed.checkpoint.catalogue import open_checkpoints
    from dist_embed.checkpoint.retention import Pruner
    from dist_embed.errors import NotWritable, StorageError, UserError
    from dist_embed.storage.retry import denies

    configured = _check_run(arguments.run).checkpoint
    given = {
        name: getattr(configured, name) if value is None else value
        for name, value in (
            ("keep_last", arguments.keep_last),
            ("keep_best", arguments.keep_best),
            ("keep_every", arguments.keep_every),
            ("leftover_hours", arguments.leftover_hours),
        )
    }
    for name, value in given.items():
        if not value >= 0:  # which NaN is not
            raise UserError(f"--{name.replace('_', '-')}: {value} is not allowed; at least 0")
    if not given["keep_last"] and not given["keep_best"]:
        raise UserError("--keep-last 0 with --keep-best 0 would leave no checkpoint to resume from")
    store = open_checkpoints(arguments.run)
    try:
        pruned = Pruner(store, configured.model_copy(update=given)).prune(dry=arguments.dry_run)
    except (PermissionError, StorageError) as exc:
        if not isinstance(exc, PermissionError) and not denies(exc.__cause__):
            raise
        raise NotWritable(f"{arguments.run} cannot be pruned: {exc}") from exc
    verb = "would remove" if arguments.dry_run else "removed"
    for step in pruned.steps:
        print(f"{verb} the checkpoint of step {step}")
    for attempt in pruned.leftovers:
        print(f"{verb} {attempt}, left behind by an unfinished save")
    if not pruned.steps and not pruned.leftovers:
        print("nothing to remove")


def _inspect(arguments: argparse.Namespace) -> None:
    from dist_embed.checkpoint.catalogue import (
        name_of_step,
        open_checkpoints,
        read_manifest,
        sound_manifests,
    )
    from dist_embed.checkpoint.read import describe_tensor
    from dist_embed.cli.table import print_table

    _check_run(arguments.run)
    store = open_checkpoints(arguments.run)
    if arguments.step is None:
        sound = sound_manifests(arguments.run)
        name = max(sound)
        manifest = sound[name]
    else:
        name = name_of_step(arguments.run, arguments.step)
        manifest = read_manifest(store, name)
    print(f"manifest     {store.uri}/{name.path}")
    print(
        f"step         {manifest.step}, saved {manifest.created} by {manifest.num_workers} workers"
    )
    print(f"format       {manifest.format}, a SHA-256 for every {manifest.block_bytes:,} bytes")
    print(f"settings     fingerprint {manifest.fingerprint}")
    chunks = sum(index.num_chunks for index in manifest.indexes)
    print(f"objects      {chunks} chunks, {len(manifest.indexes)} indexes in {manifest.attempt}")
    print(f"bytes        {manifest.size_bytes:,}")
    print(f"values       {manifest.scalars}\n")
    print_table(
        ["tensor", "type and shape", "rows in indexes"],
        [
            [
                tensor,
                describe_tensor(info),
                ", ".join(
                    f"{index.rows[tensor][0]:,}–{index.rows[tensor][1]:,}"
                    for index in manifest.indexes
                    if tensor in index.rows
                ),
            ]
            for tensor, info in manifest.tensors.items()
        ],
    )


def _check_run(run_uri: str) -> Any:
    """The run's configuration; a clear message where there is no run."""
    from dist_embed.run.folder import read_run_config

    return read_run_config(run_uri)

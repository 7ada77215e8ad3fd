"""``dist-embed checkpoint``: what checkpoints a run has."""

from __future__ import annotations

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = commands.add_parser("checkpoint", help="look at a run's checkpoints")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the complete checkpoints of a run")
    listing.add_argument("run", metavar="RUN", help="the run's folder or URL")
    listing.set_defaults(call=_list)


def _list(arguments: argparse.Namespace) -> None:
    from dist_embed.checkpoint.manager import METRIC, list_checkpoints, read_manifest
    from dist_embed.train.run_folder import read_run_config

    read_run_config(arguments.run)  # a clear message where there is no run
    steps = list_checkpoints(arguments.run)
    if not steps:
        print(f"no complete checkpoint in {arguments.run}")
        return
    print(f"{'step':>10}  {'workers':>7}  {'MiB':>9}  validation loss")
    for step in steps:
        manifest = read_manifest(arguments.run, step)
        loss = manifest.scalars.get(METRIC)
        print(
            f"{step:>10}  {manifest.num_workers:>7}  {manifest.size_bytes / 2**20:>9.1f}  "
            + ("-" if loss is None else f"{loss:.4f}")
        )

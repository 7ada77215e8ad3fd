"""``dist-embed prepare``: corpora to tokenizer, vocabulary and token shards."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = commands.add_parser("prepare", help="prepare the data of a configuration")
    add_config_arguments(parser)
    parser.add_argument("--force", action="store_true", help="prepare again what is there")
    parser.set_defaults(call=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    from dist_embed.api.data import prepare
    from dist_embed.jobs.arrived import check_sender
    from dist_embed.storage.uri import absolute

    check_sender()  # another version's configuration may have other keys
    config = load_config(arguments.config, arguments.overrides)
    data = prepare(config, force=arguments.force)
    sizes = ", ".join(f"{side} {size:,}" for side, size in data.vocabulary_size.items())
    print(f"prepared in {absolute(config.data.uri)}; vocabulary: {sizes}")

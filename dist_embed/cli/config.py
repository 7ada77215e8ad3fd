"""``dist-embed config``: the configuration's schema and a resolved configuration."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.config.load import config_to_yaml, json_schema, load_config
from dist_embed.config.reference import configuration_page
from dist_embed.config.schema import Config
from dist_embed.section import known_keys
from dist_embed.streams import write_out


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = commands.add_parser("config", help="show a resolved configuration, or the schema")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print a configuration with every default spelled out")
    add_config_arguments(show)
    show.set_defaults(call=_show)
    schema = actions.add_parser("schema", help="print the JSON schema, for editors")
    schema.set_defaults(call=_schema)
    reference = actions.add_parser("reference", help="print docs/configuration.md")
    reference.add_argument(
        "--study", action="store_true", help="docs/studies/keys.md instead: keys of a study's file"
    )
    reference.set_defaults(call=_reference)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """A configuration file and overrides."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file or URL")
    overrides: Any = parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="values that replace the file's"
    )
    overrides.completer = lambda **given: [f"{key}=" for key in known_keys(Config)]  # argcomplete's


def _show(arguments: argparse.Namespace) -> None:
    write_out(config_to_yaml(load_config(arguments.config, arguments.overrides)).encode())


def _schema(arguments: argparse.Namespace) -> None:
    del arguments
    write_out(json_schema().encode())


def _reference(arguments: argparse.Namespace) -> None:
    if arguments.study:
        from dist_embed.study.schema import study_keys_page

        write_out(study_keys_page().encode())
    else:
        write_out(configuration_page().encode())

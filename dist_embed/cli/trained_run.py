"""What the commands that use a trained run have in common."""

from __future__ import annotations

import argparse
import os

from dist_embed.config.schema import Config
from dist_embed.errors import NotWritable, UserError
from dist_embed.storage.trials import check_new_file
from dist_embed.storage.uri import is_local


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run_config` takes, and ``--launcher``."""
    parser.add_argument(
        "--workers", type=int,
        help="default: as many as trained it; of a range as many as there is room for",
    )  # fmt: skip
    parser.add_argument("--launcher", choices=("ray", "local"), default="local")
    parser.add_argument("--beam", type=int, help="instead of search.beam")
    parser.add_argument(
        "--candidates",
        type=_candidates,
        help="instead of search.candidates; 0: the whole vocabulary; auto",
    )
    parser.add_argument(
        "--replace-unknown", choices=("no", "copy", "lexicon"),
        help="instead of search.replace_unknown",
    )  # fmt: skip
    parser.add_argument(
        "--max-source-tokens", type=int, metavar="N", help="instead of search.max_source_tokens"
    )
    parser.add_argument("--too-long", choices=("cut", "refuse"), help="instead of search.too_long")


def _candidates(text: str) -> int | str:
    return text if text == "auto" else int(text)


def run_config(run_uri: str, arguments: argparse.Namespace) -> Config:
    """The configuration of a trained run, as the options change it. Raises UserError."""
    from dist_embed.api.inference import config_to_use

    return config_to_use(
        run_uri, workers=arguments.workers, beam=arguments.beam, candidates=arguments.candidates,
        replace_unknown=arguments.replace_unknown, max_source_tokens=arguments.max_source_tokens,
        too_long=arguments.too_long,
    )  # fmt: skip


def check_output(path: str | None) -> None:
    """Refuse a file that cannot be written, before the work. Raises UserError."""
    if path is None or path == "-":
        return
    if not is_local(path):
        raise UserError(f"--output: {path!r} is not allowed: a file of this machine")
    is_special = os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path)
    if not is_special:
        check_new_file(path, "--output")
    elif not os.access(path, os.W_OK):
        raise NotWritable(f"--output: {path!r} is not allowed: it may not be written")

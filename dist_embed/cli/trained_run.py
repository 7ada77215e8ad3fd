"""What the commands that use a trained run have in common."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from dist_embed.config.checks import check
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run_config` and `on_workers` take."""
    parser.add_argument("--workers", type=int, help="default: as many as trained it")
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


def _candidates(text: str) -> int | str:
    return text if text == "auto" else int(text)


def run_config(run_uri: str, arguments: argparse.Namespace) -> Config:
    """The configuration of a trained run, as the options change it. Raises UserError."""
    from dist_embed.run.folder import read_run_config

    config = read_run_config(storage.absolute(run_uri))
    workers = arguments.workers if arguments.workers is not None else config.cluster.num_workers
    if workers < 1:
        raise UserError(f"--workers: {workers} is not allowed: at least 1")
    # The machine here need not have the device that trained the run.
    cluster = config.cluster.model_copy(update={"num_workers": workers, "device": "auto"})
    # Nothing is trained: an optimizer without state, which every device has.
    embedding = config.embedding.model_copy(
        update={"memory": "auto", "exchange": "fp32", "optimizer": "sgd"}
    )
    config = config.model_copy(update={"cluster": cluster, "embedding": embedding})
    for option, least in (("beam", 1), ("candidates", 0), ("replace_unknown", None)):
        value = getattr(arguments, option)
        if value is None:
            continue
        if least is not None and value != "auto" and value < least:
            raise UserError(f"--{option}: {value} is not allowed: at least {least}")
        search = config.search.model_copy(update={option: value})
        config = config.model_copy(update={"search": search})
    check(config)
    return config


def check_output(path: str | None) -> None:
    """Refuse a file that cannot be written, before the work. Raises UserError."""
    if path is None or path == "-":
        return
    if not Path(path).parent.is_dir():
        raise UserError(f"--output: {path!r} is not allowed: no such folder")
    if Path(path).is_dir():
        raise UserError(f"--output: {path!r} is not allowed: that is a folder")
    if not os.access(path if Path(path).exists() else Path(path).parent, os.W_OK):
        raise UserError(f"--output: {path!r} is not allowed: it may not be written")


def on_workers(task: str, config: Config, options: dict[str, Any], launcher: Any) -> Any:
    """Run a task on a trained run; what it says goes to stderr, as stdout may be a result."""
    from dist_embed.cluster.fork_server import start_ahead

    if launcher == "local":
        start_ahead(config.cluster.device)
    from dist_embed.cluster.launch import launch
    from dist_embed.data.tokenizer_files import load_tokenizers
    from dist_embed.observe.events import Screen

    try:
        tokenizers = load_tokenizers(config.run.uri)
    except FileNotFoundError as exc:
        raise UserError(f"the run {config.run.uri} has no tokenizer: {exc}") from None
    sizes = {side: tokenizer.size for side, tokenizer in tokenizers.items()}
    return launch(
        task, config, options, vocabulary_size=sizes, on_event=Screen(sys.stderr).show,
        word_tables=all(tokenizer.on_disk for tokenizer in tokenizers.values()), launcher=launcher,
    )  # fmt: skip

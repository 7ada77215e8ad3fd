"""``dist-embed export``: what a run has trained, as files that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.cli.export_parts import add_parts, part_of
from dist_embed.cli.run_table import (
    add_table_options,
    add_words_options,
    chosen_words,
    described,
    open_table,
)
from dist_embed.errors import UserError

if TYPE_CHECKING:
    from dist_embed.checkpoint.manifest import ManifestName, TensorInfo
    from dist_embed.storage.objects import ObjectStore

KINDS = ("translator", "embeddings", "projector", "checkpoint")


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "write what a run has trained into files that other programs read"
    parser = commands.add_parser("export", help=text, description=text)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    translator = kinds.add_parser("translator", help="the whole translator, for another engine")
    _add_run(translator)
    translator.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    translator.add_argument("--format", choices=("ctranslate2",), default="ctranslate2")
    translator.add_argument("--quantization", choices=("int8", "int16", "float16", "bfloat16"))
    translator.set_defaults(call=_translator)
    embeddings = kinds.add_parser("embeddings", help="all words and vectors, in one file")
    add_table_options(embeddings)
    embeddings.add_argument("--output", required=True, metavar="FILE", help="a path or URL")
    embeddings.add_argument(
        "--format", required=True,
        choices=("word2vec", "word2vec-bin", "glove", "safetensors", "parquet"),
    )  # fmt: skip
    add_parts(embeddings, "words")
    embeddings.set_defaults(call=_embeddings)
    projector = kinds.add_parser("projector", help="words for TensorBoard's embedding projector")
    add_table_options(projector)
    projector.add_argument("--output", required=True, metavar="FOLDER", help="a local folder")
    add_words_options(projector)
    projector.set_defaults(call=_projector)
    checkpoint = kinds.add_parser("checkpoint", help="all weights, in one safetensors file")
    _add_run(checkpoint)
    checkpoint.add_argument("--output", required=True, metavar="FILE", help="a local path")
    checkpoint.add_argument(
        "--table", metavar="NAME", help="this table alone, as nn.Embedding's `weight`"
    )
    add_parts(checkpoint, "rows of --table")
    checkpoint.set_defaults(call=_checkpoint)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument("--step", type=int, help="of this checkpoint; default: lowest loss")


def _translator(arguments: argparse.Namespace) -> None:
    from dist_embed.export.ctranslate2_model import export_ctranslate2

    table = export_ctranslate2(
        arguments.run, Path(arguments.output), step=arguments.step,
        quantization=arguments.quantization,
    )  # fmt: skip
    kind = arguments.quantization or "float32"
    print(f"step {table.step} of {arguments.run} → {arguments.output} ({kind})")


def _embeddings(arguments: argparse.Namespace) -> None:
    from dist_embed.export.embeddings import export_embeddings
    from dist_embed.storage.trials import check_new_file

    part = part_of(arguments)
    check_new_file(part.name(arguments.output), "--output")
    table = open_table(arguments)
    written = export_embeddings(table, arguments.output, arguments.format, part)
    trained = int(table.trained.sum())
    count = len(part.rows(trained))
    print(f"{described(table)}: {count:,} words × {table.width} → {' and '.join(written)}")
    if left_out := table.num_words - trained:
        print(
            f"left out: {left_out:,} words that never occur {table.on_sides}; "
            "--untrained writes them too"
        )


def _projector(arguments: argparse.Namespace) -> None:
    from dist_embed.export.embeddings import word_counts
    from dist_embed.export.projector import projector_files
    from dist_embed.storage import uri as storage
    from dist_embed.storage.trials import check_new_folder

    if not storage.is_local(arguments.output):
        raise UserError(f"{arguments.output}: the files are written to a folder of this machine")
    check_new_folder(arguments.output, "--output")
    folder = storage.local_path(arguments.output)
    table = open_table(arguments)
    ids, words = chosen_words(table, arguments)
    files = projector_files(
        words, word_counts(table)[ids], table.rows_of(ids), f"{table.table} step {table.step}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        storage.write_given_text(str(folder / name), text)
    print(f"{described(table)}: {len(words):,} words → {folder}; tensorboard --logdir {folder}")


def _checkpoint(arguments: argparse.Namespace) -> None:
    from dist_embed.checkpoint.catalogue import read_manifest, use_choice
    from dist_embed.checkpoint.export import export_checkpoint
    from dist_embed.checkpoint.read import describe_tensor
    from dist_embed.run.folder import read_run_config
    from dist_embed.storage import uri as storage
    from dist_embed.storage.trials import check_new_file

    read_run_config(arguments.run)  # a clear message where there is no run
    part = part_of(arguments)
    if part.count > 1 and not arguments.table:
        raise UserError("--parts is not allowed without --table: a part is a range of its rows")
    if not storage.is_local(arguments.output):
        raise UserError(f"{arguments.output!r} is not allowed: safetensors go to a local path")
    file = part.name(arguments.output)
    output = storage.local_path(file)
    check_new_file(file, "--output")

    def export(store: ObjectStore, name: ManifestName) -> tuple[int, dict[str, TensorInfo]]:
        manifest = read_manifest(store, name)
        info = manifest.tensors.get(f"table.{arguments.table}.weight")
        ids = part.rows(info.num_rows) if info else None
        written = export_checkpoint(store, manifest, output, table=arguments.table, ids=ids)
        return name.step, written

    step, written = use_choice(arguments.run, arguments.step, export)
    print(f"step {step} of {arguments.run} → {file}")
    for name, info in written.items():
        print(f"  {name}  {describe_tensor(info)}")

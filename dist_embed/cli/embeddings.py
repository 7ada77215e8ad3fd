"""``dist-embed neighbors``, ``analogy``, ``embeddings``: look at a run's vectors, export them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.cli.export_parts import add_parts, part_of
from dist_embed.errors import UserError

if TYPE_CHECKING:
    from dist_embed.explore.table import RunTable

FIRST_WORDS = 1000


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    neighbors = commands.add_parser("neighbors", help="the nearest words of given ones, by cosine")
    _add_table(neighbors)
    neighbors.add_argument("words", nargs="+", metavar="WORD")
    _add_count(neighbors)
    neighbors.set_defaults(call=_neighbors)
    analogy = commands.add_parser("analogy", help="A is to B as C is to which word?")
    _add_table(analogy)
    for name in ("a", "b", "c"):
        analogy.add_argument(name, metavar=name.upper())
    _add_count(analogy)
    analogy.set_defaults(call=_analogy)
    model = commands.add_parser("export", help="the whole translator, for another engine")
    model.add_argument("run", metavar="RUN", help="the run's folder or URL")
    model.add_argument("output", metavar="FOLDER", help="a new folder")
    model.add_argument("--format", choices=("ctranslate2",), default="ctranslate2")
    model.add_argument("--quantization", choices=("int8", "int16", "float16", "bfloat16"))
    model.add_argument("--step", type=int, help="of this checkpoint; default: lowest loss")
    model.set_defaults(call=_export_model)
    parser = commands.add_parser("embeddings", help="draw, judge and export a run's vectors")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    plot = actions.add_parser("plot", help="a map of words: .png, .svg or an interactive .html")
    _add_table(plot)
    plot.add_argument("output", metavar="FILE")
    _add_choice(plot)
    plot.add_argument("--method", choices=("pca", "tsne"), default="tsne", help="default tsne")
    plot.set_defaults(call=_plot)
    projector = actions.add_parser("projector", help="files for TensorBoard's embedding projector")
    _add_table(projector)
    projector.add_argument("output", metavar="FOLDER")
    _add_choice(projector)
    projector.set_defaults(call=_projector)
    similarity = actions.add_parser(
        "similarity", help="rank correlation with people's judgement of word pairs"
    )
    _add_table(similarity)
    similarity.add_argument("file", metavar="FILE", help="lines of two words and a number")
    similarity.set_defaults(call=_similarity)
    export = actions.add_parser("export", help="write all words and vectors into a file")
    _add_table(export)
    export.add_argument("output", metavar="FILE", help="a path or URL")
    export.add_argument(
        "--format", required=True,
        choices=("word2vec", "word2vec-bin", "glove", "safetensors", "parquet"),
    )  # fmt: skip
    add_parts(export, "words")
    export.set_defaults(call=_export)


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument(
        "--role", choices=("source", "target", "output"), default="source",
        help="whose vectors: the encoder's input (default), the decoder's, or the output layer's",
    )  # fmt: skip
    parser.add_argument("--step", type=int, help="of this checkpoint; default: lowest loss")
    parser.add_argument(
        "--untrained", action="store_true",
        help="words too that never occur in training on a side that uses these vectors",
    )  # fmt: skip


def _add_count(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=10, help="words shown; default 10")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--words", metavar="FILE", help="these words, one a line; default: the most frequent ones"
    )
    parser.add_argument(
        "--count", type=int, default=FIRST_WORDS,
        help=f"how many of the most frequent words; default {FIRST_WORDS}",
    )  # fmt: skip


def _table(arguments: argparse.Namespace) -> RunTable:
    from dist_embed.explore.table import RunTable

    count = getattr(arguments, "count", 1)
    if count < 1:
        raise UserError(f"--count: {count} is not allowed: at least 1")
    return RunTable(arguments.run, arguments.role, arguments.step, untrained=arguments.untrained)


def _neighbors(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.explore.nearest import neighbors

    table = _table(arguments)
    found = neighbors(table, arguments.words, arguments.count)
    print(_described(table))
    for word, near in found.items():
        print(f"\n{word}")
        print_table(["word", "cosine"], [[other, f"{cosine:.4f}"] for other, cosine in near])


def _analogy(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.explore.nearest import analogy

    table = _table(arguments)
    found = analogy(table, arguments.a, arguments.b, arguments.c, arguments.count)
    print(_described(table))
    print(f"\n{arguments.a} is to {arguments.b} as {arguments.c} is to")
    print_table(["word", "cosine"], [[word, f"{cosine:.4f}"] for word, cosine in found])


def _similarity(arguments: argparse.Namespace) -> None:
    from dist_embed.explore.similarity import similarity_agreement

    table = _table(arguments)
    found = similarity_agreement(table, arguments.file)
    print(_described(table))
    print(
        f"Spearman's rank correlation {found.spearman:.4f} over {found.pairs:,} pairs; "
        f"{found.unknown:,} pairs have a word that the vocabulary lacks"
        + (f", {found.untrained:,} one that never occurs {table.place}" if found.untrained else "")
    )


def _plot(arguments: argparse.Namespace) -> None:
    from dist_embed.explore.flat_map import draw_map, flat_map
    from dist_embed.explore.map_page import map_page
    from dist_embed.observe.plot import ENDINGS, check_plot_path, without_letters

    check_plot_path(arguments.output, (*ENDINGS, ".html"))
    table = _table(arguments)
    ids, words = _chosen(table, arguments)
    vectors = table.rows_of(ids)
    places = flat_map(vectors, arguments.method, seed=1)
    if arguments.output.endswith(".html"):
        page = map_page(places, words, vectors, _described(table))
        Path(arguments.output).write_text(page, encoding="utf-8")
    else:
        draw_map(arguments.output, places, words, _described(table))
    print(f"{_described(table)}: {len(words):,} words by {arguments.method} → {arguments.output}")
    if arguments.output.endswith(".png") and (boxes := without_letters(words)):
        print(
            f"{len(boxes):,} of them, {boxes[0]!r} for one, have letters that the picture's font "
            "lacks, and are drawn as boxes; .svg and .html show them"
        )


def _projector(arguments: argparse.Namespace) -> None:
    from dist_embed.explore.export import word_counts
    from dist_embed.explore.map_page import projector_files
    from dist_embed.storage import uri as storage

    if not storage.is_local(arguments.output):
        raise UserError(f"{arguments.output}: the files are written to a folder of this machine")
    table = _table(arguments)
    ids, words = _chosen(table, arguments)
    files = projector_files(
        words, word_counts(table)[ids], table.rows_of(ids), f"{table.table} step {table.step}"
    )
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{_described(table)}: {len(words):,} words → {folder}; tensorboard --logdir {folder}")


def _export(arguments: argparse.Namespace) -> None:
    from dist_embed.explore.export import export_embeddings

    part = part_of(arguments)
    table = _table(arguments)
    written = export_embeddings(table, arguments.output, arguments.format, part)
    trained = int(table.trained.sum())
    count = len(part.rows(trained))
    print(f"{_described(table)}: {count:,} words × {table.width} → {' and '.join(written)}")
    if left_out := table.num_words - trained:
        print(
            f"left out: {left_out:,} words that never occur {table.place}; --untrained writes them "
            "too"
        )


def _export_model(arguments: argparse.Namespace) -> None:
    from dist_embed.export.ctranslate2_model import export_ctranslate2

    table = export_ctranslate2(
        arguments.run, Path(arguments.output), step=arguments.step,
        quantization=arguments.quantization,
    )  # fmt: skip
    kind = arguments.quantization or "float32"
    print(f"step {table.step} of {arguments.run} → {arguments.output} ({kind})")


def _chosen(table: RunTable, arguments: argparse.Namespace) -> tuple[list[int], list[str]]:
    """Ids and words that are drawn, the most frequent of the table's side first."""
    import numpy as np

    from dist_embed.data.corpus import read_lines
    from dist_embed.explore.flat_map import LEAST_WORDS

    if arguments.words:
        asked = {table.id_of(line.strip()) for line in read_lines(arguments.words) if line}
        ids = table.by_frequency(np.array(sorted(asked), dtype=np.int64)).tolist()
        if left_out := len(asked) - len(ids):
            print(
                f"left out: {left_out:,} words of {arguments.words} that never occur {table.place};"
                " --untrained shows them too",
                file=sys.stderr,
            )
    else:
        ids = table.frequent_ids(arguments.count)
    if len(ids) < LEAST_WORDS:
        raise UserError(f"{len(ids)} words are too few for a map: at least {LEAST_WORDS}")
    return ids, [table.word(i) for i in ids]


def _described(table: RunTable) -> str:
    return f"{table.run_uri}, {table.role} vectors of step {table.step}"

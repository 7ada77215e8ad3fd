"""``dist-embed bench`` of what is read and written: checkpoint, pretrained, exports."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from dist_embed.cli.bench_options import (
    add_device_options,
    add_output_option,
    at_least,
    device_and_workers,
    write_figures,
)
from dist_embed.cli.trained_run import add_worker_options, run_config
from dist_embed.storage.temporary import temporary_folder


def add_kinds(kinds: Any) -> None:
    """Add this module's measurements."""
    for add in (_add_checkpoint, _add_pretrained, _add_table_export, _add_export):
        add(kinds)


def _add_checkpoint(kinds: Any) -> None:
    parser = kinds.add_parser(
        "checkpoint", help="saving and loading a table, against the store's client and DCP"
    )
    parser.add_argument(
        "uris", nargs="+", metavar="URI", help="folders or URLs to write below, each measured"
    )
    parser.add_argument("--rows", type=at_least(1), default=10_000_000, help="default 10⁷")
    parser.add_argument("--width", type=at_least(1), default=64, help="default 64")
    add_device_options(parser, "where the table lies; default auto")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="default 3")
    add_output_option(parser)
    parser.set_defaults(call=_checkpoint)


def _checkpoint(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.checkpoint import measure_checkpoint
    from dist_embed.cli.table import print_table
    from dist_embed.embedding.memory import GIB
    from dist_embed.storage.uri import absolute

    device, workers = device_and_workers(arguments)
    figures = measure_checkpoint(
        [absolute(uri) for uri in arguments.uris], num_rows=arguments.rows, width=arguments.width,
        num_workers=workers, rounds=arguments.rounds, device=device, say=print,
    )  # fmt: skip
    print(
        f"{figures['rows']:,} rows × {figures['width']} with optimizer state, "
        f"{figures['total_bytes'] / GIB:.2f} GiB, {figures['workers']} workers on "
        f"{figures['device']}; median of {arguments.rounds} rounds"
    )
    columns = _EXTRA if device == "cuda" else {"resident": "extra GiB per worker"}
    rows = []
    for uri, found in figures["stores"].items():
        store = uri.split("://")[0] if "://" in uri else "local"
        for what, seconds in found["seconds"].items():
            speed = "" if "stall" in what else f"{figures['total_bytes'] / GIB / seconds:.2f}"
            extra = [f"{found['extra_bytes'][kind][what] / GIB:.2f}" for kind in columns]
            rows.append([store, what, f"{seconds:.2f}", speed, _compared(what, found), *extra])
    print_table(["store", "", "seconds", "GiB/s", "compared", *columns.values()], rows)
    print(f"a worker's shard: {figures['shard_bytes'] / GIB:.2f} GiB")
    for uri, found in figures["stores"].items():
        print(
            f"{uri}: bytes read / needed by one worker more: {found['bytes_read_per_needed']:.4f}"
        )
    write_figures(arguments, figures, device=figures["device"])


_EXTRA = {
    "resident": "extra GiB per worker", "pinned": "extra pinned GiB",
    "device": "extra GiB on the GPU",
}  # fmt: skip
_STALLS = ("stall, first", "stall")


def _compared(what: str, found: dict[str, Any]) -> str:
    """A row's time beside that of what it is to be compared with."""
    if what not in ("save", "load", "load, first", "DCP save", "DCP load", *_STALLS):
        return ""
    against = "save" if what in _STALLS else "client get" if "load" in what else "client put"
    ratio = found["seconds"][against] / found["seconds"][what]
    if what in _STALLS:
        return f"{1 / ratio:.1%} of the time of {against}"
    return f"{ratio:.2f} × the speed of {against}"


def _add_pretrained(kinds: Any) -> None:
    parser = kinds.add_parser(
        "pretrained", help="how fast a table starts from a file of vectors, and in what memory"
    )
    parser.add_argument("--words", type=at_least(1), default=1_000_000, help="default 10⁶")
    parser.add_argument("--width", type=at_least(1), default=300, help="default 300")
    parser.add_argument(
        "--format", choices=("glove", "word2vec", "word2vec-bin", "fasttext-bin"),
        default="glove",
        help="of the file that is written for it; default glove",
    )  # fmt: skip
    parser.add_argument("--folder", metavar="DIR", help="for the file; default: a temporary one")
    parser.add_argument("--workers", type=at_least(1), default=2, help="default 2")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="default 3")
    add_output_option(parser)
    parser.set_defaults(call=_pretrained)


def _pretrained(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.pretrained import measure_pretrained
    from dist_embed.cli.table import print_table
    from dist_embed.embedding.memory import GIB

    with temporary_folder("dist_embed-bench-", arguments.folder) as folder:
        figures = measure_pretrained(
            folder, num_words=arguments.words, width=arguments.width, format=arguments.format,
            num_workers=arguments.workers, rounds=arguments.rounds, say=print,
        )  # fmt: skip
    print(
        f"{figures['words']:,} vectors of width {figures['width']} as {figures['format']}, "
        f"{figures['file_bytes'] / GIB:.2f} GiB, {figures['workers']} workers; "
        f"median of {arguments.rounds} rounds"
    )
    rows = [
        [way, f"{statistics.median(found['seconds']):.1f}",
         f"{figures['rows_per_second'][way]:,.0f}",
         f"{max(found['extra_bytes']) / 2**20:,.0f}"]
        for way, found in figures["ways"].items()
    ]  # fmt: skip
    print_table(["who reads", "seconds", "rows/s", "MiB per worker beyond its shard"], rows)
    write_figures(arguments, figures)


def _add_table_export(kinds: Any) -> None:
    parser = kinds.add_parser(
        "table-export", help="a table of a checkpoint into one file in the order of ids"
    )
    parser.add_argument("--rows", type=at_least(1), default=2_000_000, help="default 2·10⁶")
    parser.add_argument("--width", type=at_least(1), default=128, help="default 128")
    parser.add_argument("--parts", type=at_least(1), default=8, help="one of so many; default 8")
    parser.add_argument("--folder", metavar="DIR", help="for the files; default: a temporary one")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="default 3")
    add_output_option(parser)
    parser.set_defaults(call=_table_export)


def _table_export(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.table_export import measure_table_export
    from dist_embed.cli.table import print_table
    from dist_embed.embedding.memory import GIB

    with temporary_folder("dist_embed-bench-", arguments.folder) as folder:
        figures = measure_table_export(
            folder, num_rows=arguments.rows, width=arguments.width, parts=arguments.parts,
            rounds=arguments.rounds, say=print,
        )  # fmt: skip
    size, ways = figures["table_bytes"], figures["ways"]
    print(
        f"{figures['rows']:,} rows × {figures['width']}, {size / GIB:.2f} GiB; "
        f"median of {arguments.rounds} rounds"
    )
    # Beside what has to be done in any case.
    least = sum(statistics.median(ways[way]["seconds"]) for way in ("read and proven", "written"))
    rows = [
        [way, f"{statistics.median(one['seconds']):.2f}",
         f"{statistics.median(one['seconds']) / least:.2f}",
         f"{statistics.median(one['written_bytes']) / size:.2f}",
         f"{max(one['extra_bytes']) / 2**20:,.0f}"]
        for way, one in ways.items()
    ]  # fmt: skip
    print_table(
        ["", "seconds", "of reading and writing", "written / size of the table", "extra MiB"], rows
    )
    write_figures(arguments, figures)


def _add_export(kinds: Any) -> None:
    parser = kinds.add_parser(
        "export", help="a run's translator in CTranslate2, float32 and int8, beside ours"
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument("--split", default="test", help="test (default) or validation")
    parser.add_argument("--step", type=int, help="checkpoint; default: lowest validation loss")
    add_worker_options(parser)
    add_output_option(parser)
    parser.set_defaults(call=_export)


def _export(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from dist_embed.api.inference import evaluate
    from dist_embed.bench.export import measure_engine
    from dist_embed.cli.table import print_table
    from dist_embed.data.token_shards import PreparedData, read_texts

    config = run_config(arguments.run, arguments)
    result = evaluate(
        config, split=arguments.split, step=arguments.step, launcher=arguments.launcher
    )
    folder = result.data_folder
    data = PreparedData.read(folder)
    sources, references = read_texts(folder, data.splits[arguments.split])
    found = measure_engine(
        config, result.step, sources, references, result.translations, [None, "int8"]
    )
    print(
        f"{arguments.split} of {arguments.run}, checkpoint of step {result.step}: "
        f"{len(sources):,} sentences, beam {config.search.beam}"
    )
    rows = [
        [f"dist_embed, {config.cluster.max_workers} workers", "", f"{result.bleu:.2f}",
         f"{result.sentences_per_second:.1f}", ""],
        *([f"CTranslate2 {one.kind}", f"{100 * one.same / len(sources):.1f} %", f"{one.bleu:.2f}",
           f"{one.sentences_per_second:.1f}", f"{one.model_bytes / 2**20:.1f}"] for one in found),
    ]  # fmt: skip
    print_table(["", "translated as by us", "BLEU", "sentences/s", "MiB"], rows)
    ours = {key: getattr(result, key) for key in ("bleu", "sentences_per_second", "step")}
    write_figures(arguments, {"ours": ours, "engine": [asdict(one) for one in found]})

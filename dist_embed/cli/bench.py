"""``dist-embed bench``: measurements that users repeat on their own machines."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.cli.trained_run import add_worker_options, on_workers, run_config
from dist_embed.config.load import load_config


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = commands.add_parser("bench", help="measure speed on this machine")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    baseline = kinds.add_parser(
        "baseline", help="training speed against a plain PyTorch DDP model, side by side"
    )
    _add_arguments(baseline, rounds=5, steps=20)
    baseline.set_defaults(call=_baseline)
    launchers = kinds.add_parser("launchers", help="time per step under Ray and under `local`")
    _add_arguments(launchers, rounds=3, steps=100)
    launchers.set_defaults(call=_launchers)
    checkpoint = kinds.add_parser(
        "checkpoint", help="saving and loading a table, against the store's client and DCP"
    )
    checkpoint.add_argument(
        "uris", nargs="+", metavar="URI", help="folders or URLs to write below, each measured"
    )
    checkpoint.add_argument("--rows", type=_at_least(1), default=10_000_000, help="default 10⁷")
    checkpoint.add_argument("--width", type=_at_least(1), default=64, help="default 64")
    checkpoint.add_argument("--workers", type=_at_least(1), default=2, help="default 2")
    checkpoint.add_argument("--rounds", type=_at_least(1), default=3, help="default 3")
    _add_json(checkpoint)
    checkpoint.set_defaults(call=_checkpoint)
    vocabulary = kinds.add_parser(
        "vocabulary", help="a whole training step by the size of the vocabulary, beside PyTorch's"
    )
    positive = _at_least(1)
    vocabulary.add_argument(
        "--words", type=_at_least(2), nargs="+", default=[100_000, 10_000_000], metavar="V",
        help="sizes of source, target and output table; default 10⁵ and 10⁷",
    )  # fmt: skip
    vocabulary.add_argument(
        "--widths", type=positive, nargs="+", default=[64, 128], metavar="D",
        help="default 64 and 128",
    )  # fmt: skip
    vocabulary.add_argument(
        "--against", type=int, default=1_000_000, metavar="V",
        help="size at which nn.Embedding does the same; 0: nowhere; default 10⁶",
    )  # fmt: skip
    vocabulary.add_argument("--tokens", type=positive, default=2048, help="per worker; 2048")
    vocabulary.add_argument(
        "--full-tokens", type=positive, default=256,
        help="per worker where the full softmax is compared, whose logits take memory; 256",
    )  # fmt: skip
    vocabulary.add_argument("--samples", type=positive, default=8192, help="default 8192")
    vocabulary.add_argument("--workers", type=positive, default=2, help="default 2")
    vocabulary.add_argument("--rounds", type=positive, default=3, help="default 3")
    vocabulary.add_argument("--steps", type=positive, default=20, help="per round; default 20")
    vocabulary.add_argument(
        "--largest", action="store_true",
        help="also find the largest vocabulary of each kind by filling this machine's memory",
    )  # fmt: skip
    _add_json(vocabulary)
    vocabulary.set_defaults(call=_vocabulary)
    pretrained = kinds.add_parser(
        "pretrained", help="how fast a table starts from a file of vectors, and in what memory"
    )
    pretrained.add_argument("--words", type=positive, default=1_000_000, help="default 10⁶")
    pretrained.add_argument("--width", type=positive, default=300, help="default 300")
    pretrained.add_argument(
        "--format", choices=("glove", "word2vec", "word2vec-bin"), default="glove",
        help="of the file that is written for it; default glove",
    )  # fmt: skip
    pretrained.add_argument(
        "--folder", metavar="DIR", help="for the file; default: a temporary one"
    )
    pretrained.add_argument("--workers", type=positive, default=2, help="default 2")
    pretrained.add_argument("--rounds", type=positive, default=3, help="default 3")
    _add_json(pretrained)
    pretrained.set_defaults(call=_pretrained)
    export = kinds.add_parser(
        "export", help="a run's translator in CTranslate2, float32 and int8, beside ours"
    )
    export.add_argument("run", metavar="RUN", help="the run's folder or URL")
    export.add_argument("--split", default="test", help="test (default) or validation")
    export.add_argument("--step", type=int, help="checkpoint; default: lowest validation loss")
    add_worker_options(export)
    _add_json(export)
    export.set_defaults(call=_export)
    balance = kinds.add_parser(
        "balance", help="how evenly the lookups of a step fall on the shards (a simulation)"
    )
    balance.add_argument(
        "--rows", type=positive, nargs="+", default=[1_000_000, 10_000_000], metavar="V",
        help="sizes of the table; default 10⁶ and 10⁷",
    )  # fmt: skip
    balance.add_argument(
        "--shards", type=positive, nargs="+", default=[2, 8, 64, 1024], metavar="W",
        help="default 2, 8, 64 and 1024",
    )  # fmt: skip
    balance.add_argument("--tokens", type=positive, default=8192, help="per worker; default 8192")
    balance.add_argument("--steps", type=positive, default=20, help="default 20")
    balance.add_argument("--plot", metavar="FILE", help="draw the worst steps there; .svg or .png")
    _add_json(balance)
    balance.set_defaults(call=_balance)


def _add_arguments(parser: argparse.ArgumentParser, *, rounds: int, steps: int) -> None:
    add_config_arguments(parser)
    parser.add_argument("--rounds", type=_at_least(1), default=rounds, help=f"default {rounds}")
    parser.add_argument(
        "--steps", type=_at_least(20), default=steps, help=f"per round, 20 or more; default {steps}"
    )
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write figures, machine and versions there")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not allowed: at least {least}")
        return int(text)

    return number


def _baseline(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.report import print_table, write_json
    from dist_embed.cluster.launch import launch
    from dist_embed.cluster.preparation import ensure_data, with_absolute_paths
    from dist_embed.cluster.work import BASELINE
    from dist_embed.parallel.device import has_native_bf16, resolve_device

    config = load_config(arguments.config, arguments.overrides)
    config = with_absolute_paths(config, on_cluster=False)
    data = ensure_data(config, print)
    bf16 = has_native_bf16(torch.device(resolve_device(config.cluster.device)))
    options = {"rounds": arguments.rounds, "steps": arguments.steps, "bf16": bf16}
    figures = launch(
        BASELINE, config, options, vocabulary_size=data.vocabulary_size,
        on_event=lambda event: print(event["text"]), launcher="local",
    )  # fmt: skip
    speeds = figures["tokens_per_second"]
    plain = speeds["plain DDP fp32"]
    rows = [
        [
            name,
            f"{speed:,.0f}",
            f"{min(figures['all_rounds'][name]):,.0f} to {max(figures['all_rounds'][name]):,.0f}",
            f"{speed / plain:.2f}",
        ]
        for name, speed in speeds.items()
    ]
    print(
        f"{figures['workers']} workers × {figures['threads_per_worker']} threads on "
        f"{figures['device']}; median of {arguments.rounds} rounds of {arguments.steps} steps"
    )
    print_table(["", "target tokens/s", "range", "ratio to plain DDP fp32"], rows)
    if arguments.json:
        write_json(arguments.json, _command(), figures["device"], figures)


def _launchers(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.launchers import measure_launchers
    from dist_embed.bench.report import print_table, write_json
    from dist_embed.cluster.preparation import ensure_data, with_absolute_paths
    from dist_embed.parallel.device import device_name, resolve_device

    config = load_config(arguments.config, arguments.overrides)
    config = with_absolute_paths(config, on_cluster=False)
    data = ensure_data(config, print)
    with tempfile.TemporaryDirectory(prefix="dist_embed-bench-") as folder:
        figures = measure_launchers(
            config, data.vocabulary_size, rounds=arguments.rounds, steps=arguments.steps,
            folder_uri=folder, say=print,
        )  # fmt: skip
    seconds = figures["step_seconds"]
    rows = [
        [name, f"{value * 1000:.1f}", f"{value / seconds['local']:.3f}"]
        for name, value in seconds.items()
    ]
    print_table(["launcher", "ms per step", "ratio to local"], rows)
    if arguments.json:
        device = torch.device(resolve_device(config.cluster.device))
        write_json(arguments.json, _command(), device_name(device), figures)


def _checkpoint(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.checkpoint import measure_checkpoint
    from dist_embed.bench.report import print_table, write_json
    from dist_embed.embedding.memory import GIB
    from dist_embed.parallel.device import device_name
    from dist_embed.storage.uri import absolute

    figures = measure_checkpoint(
        [absolute(uri) for uri in arguments.uris], num_rows=arguments.rows, width=arguments.width,
        num_workers=arguments.workers, rounds=arguments.rounds, say=print,
    )  # fmt: skip
    print(
        f"{figures['rows']:,} rows × {figures['width']} with optimizer state, "
        f"{figures['total_bytes'] / GIB:.2f} GiB, {figures['workers']} workers; "
        f"median of {arguments.rounds} rounds"
    )
    rows = []
    for uri, found in figures["stores"].items():
        store = uri.split("://")[0] if "://" in uri else "local"
        for what, seconds in found["seconds"].items():
            speed = "" if "stall" in what else f"{figures['total_bytes'] / GIB / seconds:.2f}"
            extra = f"{found['extra_bytes'][what] / GIB:.2f}"
            rows.append([store, what, f"{seconds:.2f}", speed, _compared(what, found), extra])
    print_table(["store", "", "seconds", "GiB/s", "compared", "extra GiB per worker"], rows)
    print(f"a worker's shard: {figures['shard_bytes'] / GIB:.2f} GiB")
    for uri, found in figures["stores"].items():
        print(
            f"{uri}: bytes read / needed by one worker more: {found['bytes_read_per_needed']:.4f}"
        )
    if arguments.json:
        write_json(arguments.json, _command(), device_name(torch.device("cpu")), figures)


def _vocabulary(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.report import print_table, write_json
    from dist_embed.bench.vocabulary import vocabulary_report
    from dist_embed.parallel.device import device_name

    figures = vocabulary_report(
        arguments.words, arguments.widths, against=arguments.against, tokens=arguments.tokens,
        full_tokens=arguments.full_tokens, num_samples=arguments.samples,
        num_workers=arguments.workers, rounds=arguments.rounds, steps=arguments.steps,
        find_largest=arguments.largest, say=print,
    )  # fmt: skip
    for title, header, rows in figures.tables():
        print(f"\n{title}\n")
        print_table(header, rows)
    if arguments.json:
        write_json(arguments.json, _command(), device_name(torch.device("cpu")), figures.to_dict())


def _pretrained(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.pretrained import measure_pretrained
    from dist_embed.bench.report import print_table, write_json
    from dist_embed.embedding.memory import GIB
    from dist_embed.parallel.device import device_name

    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="dist_embed-bench-") as folder:
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
    if arguments.json:
        write_json(arguments.json, _command(), device_name(torch.device("cpu")), figures)


def _export(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    import torch

    from dist_embed.bench.export import measure_engine
    from dist_embed.bench.report import print_table, write_json
    from dist_embed.cluster.work import EVALUATE
    from dist_embed.data.token_shards import PreparedData, read_texts
    from dist_embed.parallel.device import device_name

    config = run_config(arguments.run, arguments)
    options = {"split": arguments.split, "step": arguments.step}
    result = on_workers(EVALUATE, config, options, arguments.launcher)
    data = PreparedData.read(config.data.uri)
    sources, references = read_texts(config.data.uri, data.splits[arguments.split])
    found = measure_engine(
        config, result["step"], sources, references, result["translations"], [None, "int8"]
    )
    print(
        f"{arguments.split} of {arguments.run}, checkpoint of step {result['step']}: "
        f"{len(sources):,} sentences, beam {config.search.beam}"
    )
    rows = [
        [f"dist_embed, {config.cluster.num_workers} workers", "", f"{result['bleu']:.2f}",
         f"{result['sentences_per_second']:.1f}", ""],
        *([f"CTranslate2 {one.kind}", f"{100 * one.same / len(sources):.1f} %", f"{one.bleu:.2f}",
           f"{one.sentences_per_second:.1f}", f"{one.model_bytes / 2**20:.1f}"] for one in found),
    ]  # fmt: skip
    print_table(["", "translated as by us", "BLEU", "sentences/s", "MiB"], rows)
    if arguments.json:
        figures = {
            "ours": {key: result[key] for key in ("bleu", "sentences_per_second", "step")},
            "engine": [asdict(one) for one in found],
        }
        write_json(arguments.json, _command(), device_name(torch.device("cpu")), figures)


def _balance(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.balance import (
        balance_figures,
        balance_report,
        balance_table,
        plot_balance,
    )
    from dist_embed.bench.report import print_table, write_json
    from dist_embed.observe.plot import check_plot_path
    from dist_embed.parallel.device import device_name

    if arguments.plot:
        check_plot_path(arguments.plot)
    found = balance_report(
        arguments.rows, arguments.shards, tokens=arguments.tokens, steps=arguments.steps,
        say=print,
    )  # fmt: skip
    print(
        "rows asked of the fullest shard ÷ mean over shards; "
        f"{arguments.tokens:,} tokens a worker, {arguments.steps} steps"
    )
    print_table(*balance_table(found))
    if arguments.json:
        figures = balance_figures(found, arguments.tokens)
        write_json(arguments.json, _command(), device_name(torch.device("cpu")), figures)
    if arguments.plot:
        plot_balance(found, arguments.plot)


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


def _command() -> str:
    return shlex.join(["dist-embed", *sys.argv[1:]])

"""``dist-embed bench`` of training steps: baseline, launchers, vocabulary, balance."""

from __future__ import annotations

import argparse
from typing import Any

from dist_embed.cli.bench_options import (
    add_device_options,
    add_output_option,
    add_table_options,
    at_least,
    device_and_workers,
    write_figures,
)
from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config
from dist_embed.errors import UserError
from dist_embed.storage.temporary import temporary_folder


def add_kinds(kinds: Any) -> None:
    """Add this module's measurements."""
    for add in (_add_baseline, _add_launchers, _add_vocabulary, _add_balance):
        add(kinds)


def _add_baseline(kinds: Any) -> None:
    parser = kinds.add_parser(
        "baseline", help="training speed against a plain PyTorch DDP model, side by side"
    )
    _add_run_options(parser, rounds=5, steps=20)
    parser.add_argument(
        "--compile", action="store_true",
        help="also against the plain model under torch.compile, which may take minutes at first",
    )  # fmt: skip
    parser.set_defaults(call=_baseline)


def _baseline(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.tasks import Baseline
    from dist_embed.cli.table import print_table
    from dist_embed.cluster.launch import launch
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.data.preparation import ensure_data
    from dist_embed.parallel.device import has_native_bf16, resolve_device

    config = load_config(arguments.config, arguments.overrides)
    config = with_absolute_paths(config, on_cluster=False)
    data = ensure_data(config, print)
    precisions = [config.train.precision]
    if config.train.precision == "auto":
        narrow = has_native_bf16(torch.device(resolve_device(config.cluster.device)))
        precisions = ["fp32", "bf16"] if narrow else ["fp32"]
    task = Baseline(
        arguments.rounds, arguments.steps, precisions, arguments.compile, data.folder_uri
    )
    figures = launch(
        task, config, vocabulary_size=data.vocabulary_size,
        on_event=lambda event: print(event["text"]), launcher="local",
    )  # fmt: skip
    speeds = figures["tokens_per_second"]
    first = f"plain DDP {precisions[0]}"
    rows = [
        [
            name,
            f"{speed:,.0f}",
            f"{min(figures['all_rounds'][name]):,.0f} to {max(figures['all_rounds'][name]):,.0f}",
            f"{speed / speeds[first]:.2f}",
        ]
        for name, speed in speeds.items()
    ]
    rows += [[name, "left out", "", ""] for name in figures["left_out"]]
    print(
        f"{figures['workers']} workers × {figures['threads_per_worker']} threads on "
        f"{figures['device']}; median of {arguments.rounds} rounds of {arguments.steps} steps"
    )
    print_table(["", "target tokens/s", "range", f"ratio to {first}"], rows)
    write_figures(arguments, figures, device=figures["device"])


def _add_launchers(kinds: Any) -> None:
    parser = kinds.add_parser("launchers", help="time per step under Ray and under `local`")
    _add_run_options(parser, rounds=3, steps=100)
    parser.set_defaults(call=_launchers)


def _launchers(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.launchers import measure_launchers
    from dist_embed.cli.table import print_table
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.data.preparation import ensure_data
    from dist_embed.parallel.device import device_name, resolve_device

    config = load_config(arguments.config, arguments.overrides)
    config = with_absolute_paths(config, on_cluster=False)
    data = ensure_data(config, print)
    with temporary_folder("dist_embed-bench-") as folder:
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
    device = torch.device(resolve_device(config.cluster.device))
    write_figures(arguments, figures, device=device_name(device))


def _add_run_options(parser: argparse.ArgumentParser, *, rounds: int, steps: int) -> None:
    add_config_arguments(parser)
    parser.add_argument("--rounds", type=at_least(1), default=rounds, help=f"default {rounds}")
    parser.add_argument(
        "--steps", type=at_least(20), default=steps, help=f"per round, 20 or more; default {steps}"
    )
    add_output_option(parser)


def _add_vocabulary(kinds: Any) -> None:
    parser = kinds.add_parser(
        "vocabulary", help="a whole training step by the size of the vocabulary, beside PyTorch's"
    )
    add_table_options(parser, least=2, more="; none: see --against")
    parser.add_argument(
        "--against", type=int, default=1_000_000, metavar="V",
        help="size at which nn.Embedding does the same; 0: nowhere; default 10⁶",
    )  # fmt: skip
    parser.add_argument("--tokens", type=at_least(1), default=2048, help="per worker; default 2048")
    parser.add_argument(
        "--full-tokens", type=at_least(0), default=256,
        help="per worker where the full softmax is compared, whose logits take memory; 0: not "
        "compared; default 256",
    )  # fmt: skip
    parser.add_argument("--samples", type=at_least(1), default=8192, help="default 8192")
    add_device_options(parser, "default auto")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="default 3")
    parser.add_argument("--steps", type=at_least(1), default=20, help="per round; default 20")
    parser.add_argument(
        "--largest", action="store_true",
        help="also find the largest vocabulary of each kind by filling this machine's memory; on "
        "the CPU alone",
    )  # fmt: skip
    add_output_option(parser)
    parser.set_defaults(call=_vocabulary)


def _vocabulary(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.bench.vocabulary import vocabulary_report
    from dist_embed.bench.vocabulary_cases import SENTENCE_TOKENS
    from dist_embed.cli.table import print_table
    from dist_embed.parallel.device import device_name

    for option in ("tokens", "full_tokens"):
        value = getattr(arguments, option)
        if value % SENTENCE_TOKENS:
            raise UserError(
                f"--{option.replace('_', '-')}: {value} is not allowed: sentences have "
                f"{SENTENCE_TOKENS} tokens, so a multiple of that"
            )
    device, workers = device_and_workers(arguments)
    figures = vocabulary_report(
        arguments.words, arguments.widths, against=arguments.against, tokens=arguments.tokens,
        full_tokens=arguments.full_tokens, num_samples=arguments.samples,
        num_workers=workers, rounds=arguments.rounds, steps=arguments.steps,
        find_largest=arguments.largest, device=device, say=print,
    )  # fmt: skip
    name = device_name(torch.device(device))
    print(
        f"\n{workers} workers on {name}; float32; median of {arguments.rounds} rounds of "
        f"{arguments.steps} steps, prepared before the clock"
    )
    for title, header, rows in figures.tables():
        print(f"\n{title}\n")
        print_table(header, rows)
    write_figures(arguments, figures.to_dict(), device=name)


def _add_balance(kinds: Any) -> None:
    parser = kinds.add_parser(
        "balance",
        help="how evenly the lookups of a step fall on the shards, or its sentences on the workers "
        "(a simulation)",
    )
    parser.add_argument(
        "--batches", metavar="DATA",
        help="instead: how full and even batches are, and what of the corpus a worker reads; DATA "
        "is a folder of prepared data, or `lognormal` for lengths that are drawn",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=at_least(1), nargs="+", default=[1, 2, 8, 64, 512], metavar="W",
        help="with --batches; default 1, 2, 8, 64 and 512",
    )  # fmt: skip
    parser.add_argument(
        "--batch-tokens", type=at_least(1), default=4096, metavar="N",
        help="with --batches: of the budget, a worker; default 4096",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=at_least(1), nargs="+", default=[1_000_000, 10_000_000], metavar="V",
        help="sizes of the table; default 10⁶ and 10⁷",
    )  # fmt: skip
    parser.add_argument(
        "--shards", type=at_least(1), nargs="+", default=[2, 8, 64, 1024], metavar="W",
        help="default 2, 8, 64 and 1024",
    )  # fmt: skip
    parser.add_argument("--tokens", type=at_least(1), default=8192, help="per worker; default 8192")
    parser.add_argument("--steps", type=at_least(1), default=20, help="default 20")
    parser.add_argument("--plot", metavar="FILE", help="draw the worst steps there; .svg or .png")
    add_output_option(parser)
    parser.set_defaults(call=_balance)


def _balance(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.balance import (
        balance_figures,
        balance_report,
        balance_table,
        plot_balance,
    )
    from dist_embed.cli.table import print_table
    from dist_embed.observe.plot import check_plot_path

    if arguments.batches:
        _batch_balance(arguments)
        return
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
    write_figures(arguments, balance_figures(found, arguments.tokens))
    if arguments.plot:
        plot_balance(found, arguments.plot)


def _batch_balance(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.batch_balance import (
        batch_balance_figures,
        batch_balance_report,
        batch_balance_table,
    )
    from dist_embed.cli.table import print_table
    from dist_embed.data.prepared_folder import prepared_folder
    from dist_embed.data.token_shards import PreparedData

    if arguments.plot:
        raise UserError("--plot: not allowed with --batches, which draws nothing")
    data, tokens = None, arguments.batch_tokens
    if arguments.batches != "lognormal":
        try:
            data = PreparedData.read(prepared_folder(arguments.batches))
        except FileNotFoundError:
            raise UserError(
                f"--batches: {arguments.batches!r} is not allowed: `lognormal`, or a folder of "
                "prepared data (there are none)"
            ) from None
    found = batch_balance_report(
        data, arguments.workers, tokens=tokens, steps=arguments.steps, say=print
    )
    print(
        f"batches of one pool, {tokens:,} tokens a worker; read: bytes of the blocks that a worker "
        "reads ÷ (bytes of the pool ÷ workers)"
    )
    print_table(*batch_balance_table(found))
    write_figures(arguments, batch_balance_figures(found, tokens))

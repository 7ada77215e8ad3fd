"""``dist-embed bench output``."""

from __future__ import annotations

import argparse
from typing import Any, Literal

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures
from dist_embed.config.cuda_only import WIDEST_ON_CUDA
from dist_embed.errors import UserError


def add_kinds(kinds: Any) -> None:
    """Add this module's measurement."""
    parser = kinds.add_parser(
        "output", help="the output layers' time and memory on one device, beside plain PyTorch"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32"), default="bf16", help="of the products; default bf16"
    )
    parser.add_argument("--tokens", type=at_least(1), default=8192, help="default 8192")
    parser.add_argument("--width", type=at_least(4), default=2304, help="default 2304")
    parser.add_argument(
        "--rows", type=at_least(2), default=256_000, help="words of the exact layer; default 256000"
    )
    parser.add_argument(
        "--logits-block-mib", type=_block, nargs="*", default=["auto", 256.0], metavar="MIB",
        help="values of model.logits_block_mib, each measured; default auto and 256; none: neither "
        "the exact layer nor F.cross_entropy",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true", help="also F.cross_entropy under torch.compile"
    )
    parser.add_argument(
        "--sampled-rows", type=at_least(2), nargs="*", default=[], metavar="V",
        help="words of the sampled layer, each number measured; default: none",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=at_least(1), default=8192,
        help="negatives of the sampled layer; default 8192",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=at_least(1), default=10, help="passes that are timed; default 10"
    )
    add_output_option(parser)
    parser.set_defaults(call=_output)


def _block(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        mib = float(text)
    except ValueError:
        mib = 0.0
    if not 0 < mib < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: auto, or MiB above 0")
    return mib


def _output(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.output import measure_output, output_table
    from dist_embed.bench.output_sides import OutputSizes
    from dist_embed.bench.passes import WARM_UP
    from dist_embed.cli.table import print_table
    from dist_embed.parallel.device import resolve_device

    device = resolve_device(arguments.device, name="--device")
    _check(arguments, device)
    sizes = OutputSizes(
        device, arguments.dtype, arguments.tokens, arguments.width, arguments.rows,
        arguments.logits_block_mib, arguments.compile, arguments.sampled_rows, arguments.samples,
        arguments.repeats,
    )  # fmt: skip
    figures = measure_output(sizes, say=print)
    print(
        f"{sizes.tokens:,} tokens, width {sizes.width:,}, products in {sizes.dtype}, "
        f"{figures['name']}; median of {sizes.repeats} passes after {WARM_UP}"
    )
    print_table(*output_table(figures["sides"]))
    print(
        "loss and gradients: forward and backward, to hidden states and rows. TFLOP/s: of the "
        "three products of tokens × width × words (sampled: × negatives) in that time. MiB beyond: "
        "inputs, rows with optimizer state, and gradients that stay. Largest difference: from "
        "F.cross_entropy in fp32, of loss and gradients, by their size"
    )
    write_figures(arguments, figures, device=figures["name"])


def _check(arguments: argparse.Namespace, device: str) -> None:
    """Raise UserError for sizes that cannot be measured."""
    if not arguments.logits_block_mib and not arguments.sampled_rows:
        raise UserError(
            "--logits-block-mib: no size is given, and without --sampled-rows that leaves nothing "
            "to measure"
        )
    if arguments.width % 4:
        raise UserError(f"--width: {arguments.width} is not allowed: a multiple of 4")
    if arguments.sampled_rows and device == "cuda" and arguments.width > WIDEST_ON_CUDA:
        raise UserError(
            f"--width: {arguments.width} is not allowed with --sampled-rows on a GPU, whose "
            f"tables have at most {WIDEST_ON_CUDA}; measure these with another width"
        )
    for words in arguments.sampled_rows:
        if words <= arguments.samples:
            raise UserError(
                f"--samples: {arguments.samples} is not allowed with --sampled-rows {words}: "
                "fewer than words"
            )

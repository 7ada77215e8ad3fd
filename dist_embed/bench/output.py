"""Time and memory of the output layers on one device, beside plain PyTorch's cross entropy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from statistics import median
from typing import Any

from dist_embed.bench.output_sides import OutputSizes, Side, exact_sides, sampled_sides
from dist_embed.bench.workers import LOG_FOLDER, TIMEOUT_SECONDS, Say
from dist_embed.cluster.local import launch_local
from dist_embed.observe.events import Emit
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.device import device_name
from dist_embed.parallel.group import joined_group

_PHASES = ("lookup", "layer", "update")


def measure_output(sizes: OutputSizes, *, say: Say) -> dict[str, Any]:
    """Measure every side, in a process of its own.

    Args:
        sizes: what is measured.
        say: takes a line for each side once it is.

    Returns the sizes, the device's name as ``name``, and ``sides``: those of `Side` by attribute.

    Raises:
        RunFailed: a side computes something else than plain cross entropy in float32.
    """
    found: dict[str, Any] = launch_local(
        _measure, (sizes,), num_workers=1, on_event=lambda event: say(event["text"]),
        log_folder=str(LOG_FOLDER), device=sizes.device,
    )  # fmt: skip
    return found


def _measure(sizes: OutputSizes, emit: Emit) -> dict[str, Any]:
    """What `measure_output` returns."""
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group(sizes.device, TIMEOUT_SECONDS) as group:
        sides = []
        for side in chain(exact_sides(sizes, group), sampled_sides(sizes, group)):
            emit({"kind": "line", "text": _told(side)})
            sides.append(asdict(side))
        return {**asdict(sizes), "name": device_name(group.device), "sides": sides}


def _told(side: Side) -> str:
    if side.left_out is not None:
        return f"{side.name}, {side.words:,} words: {side.left_out}"
    parts = (f"{phase} {median(taken) * 1e3:.2f} ms" for phase, taken in side.seconds.items())
    return f"{side.name}, {side.words:,} words: " + ", ".join(parts)


def output_table(sides: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows. Times are medians; that of the sum is of whole passes."""
    header = [
        "", "words", "lookup, ms", "loss and gradients, ms", "update, ms", "together, ms",
        "TFLOP/s", "MiB beyond", "largest difference",
    ]  # fmt: skip
    return header, [list(_cells(side)) for side in sides]


def _cells(side: dict[str, Any]) -> Iterator[str]:
    yield side["name"]
    yield f"{side['words']:,}"
    if side["left_out"] is not None:
        yield side["left_out"]
        yield from [""] * 6
        return
    seconds = side["seconds"]
    for phase in _PHASES:
        yield f"{median(seconds[phase]) * 1e3:.2f}" if phase in seconds else ""
    yield f"{median(map(sum, zip(*seconds.values(), strict=True))) * 1e3:.2f}"
    yield f"{side['flop'] / median(seconds['layer']) / 1e12:.3g}"
    yield f"{side['beyond_bytes'] / 2**20:,.0f}"
    yield f"{max(side['differences'].values()):.1e}"

"""The first layer of a model as one-hot vectors times a matrix, and as a lookup of its rows.

Both compute the same: row i of E is e_i · E. What differs is what it costs. Every size is measured
in a process of its own, so that one that does not fit ends that process alone.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.data.zipf import zipf
from dist_embed.embedding.memory import GIB
from dist_embed.observe.plot import GREY, INK, label_ends, log_axis, plot_into

Say = Callable[[str], None]
LIMIT_SECONDS = 600.0
NO_ROOM = "does not fit"


@dataclass(frozen=True)
class Cost:
    """What one way of computing the layer takes for a batch, forward and backward.

    Attributes:
        seconds: the median of the rounds.
        peak_bytes: of resident memory beyond what the process held before, with matrix and
            gradient.
    """

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class OneHotFigures:
    """One size of the vocabulary.

    Attributes:
        words: V.
        one_hot: its cost, or why there is none.
        lookup: of rows of the matrix by their numbers, the gradient sparse; the same.
        output_difference: largest absolute difference of the outputs; None without one-hot.
        gradient_difference: of the matrix' gradients.
    """

    words: int
    one_hot: Cost | str
    lookup: Cost | str
    output_difference: float | None
    gradient_difference: float | None


def measure_one_hot(
    sizes: Sequence[int], width: int, tokens: int, rounds: int, say: Say
) -> list[OneHotFigures]:
    """Measure every size.

    Args:
        sizes: V of each.
        width: D.
        tokens: words of a batch, drawn by Zipf's law.
        rounds: that are measured, after one that is not counted.
        say: gets a line when something has been measured.
    """
    figures = []
    for words in sizes:
        say(f"{words:,} words")
        costs: dict[str, Cost | str] = {}
        for way in ("lookup", "one_hot"):
            costs[way] = _apart(_cost, way, words, width, tokens, rounds)
            say(f"  {way}: {_told(costs[way])}")
        output = gradient = None
        if isinstance(costs["one_hot"], Cost):
            found = _apart(_differences, words, width, tokens)
            # With both gradients at once it may not fit where one way alone does.
            output, gradient = (None, None) if isinstance(found, str) else found
        figures.append(OneHotFigures(words, costs["one_hot"], costs["lookup"], output, gradient))
    return figures


def by_one_hot(ids: Tensor, matrix: Tensor) -> Tensor:
    """[N] and [V, D] to [N, D] by the product [N, V] × [V, D]."""
    one_hot = torch.zeros(len(ids), len(matrix), dtype=matrix.dtype, device=matrix.device)
    return one_hot.scatter_(1, ids.unsqueeze(1), 1.0) @ matrix


def by_lookup(ids: Tensor, matrix: Tensor) -> Tensor:
    """The same by taking rows; the gradient holds only those."""
    return functional.embedding(ids, matrix, sparse=True)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"one_hot": by_one_hot, "lookup": by_lookup}


def _cost(way: str, words: int, width: int, tokens: int, rounds: int) -> Cost:
    ids, matrix, gradient = _batch(words, width, tokens)
    before = reset_peak() - matrix.nbytes
    seconds = []
    for _ in range(1 + rounds):
        matrix.grad = None
        started = time.perf_counter()
        WAYS[way](ids, matrix).backward(gradient)
        seconds.append(time.perf_counter() - started)
    return Cost(median(seconds[1:]), peak_bytes() - before)  # the first starts threads, pages, …


def _differences(words: int, width: int, tokens: int) -> tuple[float, float]:
    ids, matrix, gradient = _batch(words, width, tokens)
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    for way in ("lookup", "one_hot"):
        matrix.grad = None
        out = WAYS[way](ids, matrix)
        out.backward(gradient)
        outputs.append(out.detach())
        assert matrix.grad is not None
        gradients.append(matrix.grad.to_dense())
    return (
        float((outputs[0] - outputs[1]).abs().max()),
        float((gradients[0] - gradients[1]).abs().max()),
    )


def _batch(words: int, width: int, tokens: int) -> tuple[Tensor, nn.Parameter, Tensor]:
    import numpy as np

    torch.manual_seed(1)
    matrix = nn.Parameter(torch.randn(words, width))
    ids = torch.from_numpy(zipf(np.random.default_rng(1), words, tokens).astype(np.int64))
    return ids, matrix, torch.randn(tokens, width)


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result from a process of its own, or, as text, why it gave none.

    Raises RuntimeError where the function fails for anything but lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_SECONDS):
            return f"over {LIMIT_SECONDS:.0f} s"
        result, failure = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGKILL:  # by the kernel, for its memory
            raise RuntimeError(f"a process ended with code {process.exitcode}") from None
        return NO_ROOM
    finally:
        process.kill()
        process.join()
    if failure:
        raise RuntimeError(failure)
    return result


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Where memory ends, the kernel is to end this process and no other.
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        pipe.send((function(*arguments), None))
    except Exception as exc:
        # PyTorch says it in words only.
        if isinstance(exc, MemoryError) or "allocate memory" in str(exc):
            pipe.send((NO_ROOM, None))
        else:
            pipe.send((None, traceback.format_exc()))


def one_hot_table(figures: Sequence[OneHotFigures]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = [
        "words", "one-hot ms", "lookup ms", "ratio", "one-hot GiB", "lookup GiB",
        "outputs differ by", "gradients differ by",
    ]  # fmt: skip
    rows = []
    for one in figures:
        costs = [one.one_hot, one.lookup]
        times = [c if isinstance(c, str) else f"{c.seconds * 1e3:,.1f}" for c in costs]
        sizes = ["" if isinstance(c, str) else f"{c.peak_bytes / GIB:.2f}" for c in costs]
        known = [c.seconds for c in costs if isinstance(c, Cost)]
        ratio = f"{known[0] / known[1]:,.0f}" if len(known) == 2 else ""
        differences = [
            "" if difference is None else f"{difference:.1e}"
            for difference in (one.output_difference, one.gradient_difference)
        ]
        rows.append([f"{one.words:,}", *times, ratio, *sizes, *differences])
    return header, rows


def draw_one_hot(figures: Sequence[OneHotFigures], path: str) -> None:
    """Time over the size of the vocabulary. Raises UserError for a file that cannot be drawn."""
    with plot_into(path) as axes:
        ends = []
        for name, color in (("one-hot", INK), ("lookup", GREY)):
            costs = [
                (one.words, one.one_hot if name == "one-hot" else one.lookup) for one in figures
            ]
            points = [
                (words, cost.seconds * 1e3) for words, cost in costs if isinstance(cost, Cost)
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker="o")
                ends.append((points[-1][1], name))
        log_axis(axes, "x", [one.words for one in figures])
        axes.set_yscale("log")
        axes.set_xlabel("words")
        axes.set_title("milliseconds of a batch, forward and backward")
        label_ends(axes, figures[-1].words, ends)


def _told(cost: Cost | str) -> str:
    if isinstance(cost, str):
        return cost
    return f"{cost.seconds * 1e3:.1f} ms, {cost.peak_bytes / GIB:.2f} GiB"

"""The first layer of a model as one-hot vectors times a matrix, and as a lookup of its rows.

Both compute the same: row i of E is e_i · E. What differs is what it costs. Every size is measured
in a process of its own, so that one that does not fit ends that process alone.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.bench.zipf import zipf
from dist_embed.embedding.memory import GIB
from dist_embed.observe.plot import GREY, INK, label_ends, log_axis, plot_into
from dist_embed.storage import uri as storage
from dist_embed.study.plan import OneHotStudy

Say = Callable[[str], None]
LIMIT_SECONDS = 600.0


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
        one_hot: None where it did not fit into this machine.
        lookup: rows of the matrix by their numbers, the gradient sparse.
        output_difference: largest absolute difference of the outputs; None without one-hot.
        gradient_difference: of the matrix' gradients.
    """

    words: int
    one_hot: Cost | None
    lookup: Cost | None
    output_difference: float | None
    gradient_difference: float | None


def run_one_hot(study: OneHotStudy, say: Say) -> list[OneHotFigures]:
    """Measure every size; kept in the study's folder, so that it is done once."""
    kept = storage.join(study.folder, "figures.json")
    settings = study.model_dump(mode="json")
    if storage.exists(kept):
        there = json.loads(storage.read_text(kept))
        if there["study"] == settings:
            return [_from_dict(entry) for entry in there["figures"]]
    figures = []
    for words in study.words:
        say(f"{words:,} words")
        costs = {}
        for way in ("lookup", "one_hot"):
            costs[way] = _apart(_cost, way, words, study.width, study.tokens, study.rounds)
            say(f"  {way}: " + (_told(costs[way]) if costs[way] else "does not fit"))
        differences = None
        if costs["one_hot"]:
            differences = _apart(_differences, words, study.width, study.tokens)
        output, gradient = differences or (None, None)
        figures.append(OneHotFigures(words, costs["one_hot"], costs["lookup"], output, gradient))
    content = {"study": settings, "figures": [asdict(one) for one in figures]}
    storage.write_text(kept, json.dumps(content, indent=1) + "\n")
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
    for _ in range(rounds):
        matrix.grad = None
        started = time.perf_counter()
        WAYS[way](ids, matrix).backward(gradient)
        seconds.append(time.perf_counter() - started)
    return Cost(median(seconds), peak_bytes() - before)


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
    """The function's result from a process of its own; None where that ends without one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_SECONDS):
            return None
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Where memory ends, the kernel is to end this process and no other.
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        pipe.send(function(*arguments))
    except (RuntimeError, MemoryError):  # torch could not allocate
        pipe.close()


def one_hot_table(figures: list[OneHotFigures]) -> str:
    """The figures in Markdown."""
    lines = [
        "| words | one-hot ms | lookup ms | ratio | one-hot GiB | lookup GiB | outputs differ by "
        "| gradients differ by |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in figures:
        dense, sparse = one.one_hot, one.lookup
        cells = [
            f"{one.words:,}",
            f"{dense.seconds * 1e3:,.1f}" if dense else "does not fit",
            f"{sparse.seconds * 1e3:,.1f}" if sparse else "does not fit",
            f"{dense.seconds / sparse.seconds:,.0f}" if dense and sparse else "",
            f"{dense.peak_bytes / GIB:.2f}" if dense else "",
            f"{sparse.peak_bytes / GIB:.2f}" if sparse else "",
            "" if one.output_difference is None else f"{one.output_difference:.1e}",
            "" if one.gradient_difference is None else f"{one.gradient_difference:.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_one_hot(figures: list[OneHotFigures], path: str) -> None:
    """Time over the size of the vocabulary. Raises UserError for a file that cannot be drawn."""
    with plot_into(path) as axes:
        ends = []
        for name, color in (("one-hot", INK), ("lookup", GREY)):
            costs = [
                (one.words, one.one_hot if name == "one-hot" else one.lookup) for one in figures
            ]
            points = [(words, cost.seconds * 1e3) for words, cost in costs if cost]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker="o")
                ends.append((points[-1][1], name))
        log_axis(axes, "x", [one.words for one in figures])
        axes.set_yscale("log")
        axes.set_xlabel("words")
        axes.set_title("milliseconds of a batch, forward and backward")
        label_ends(axes, figures[-1].words, ends)


def _told(cost: Cost) -> str:
    return f"{cost.seconds * 1e3:.1f} ms, {cost.peak_bytes / GIB:.2f} GiB"


def _from_dict(entry: dict[str, Any]) -> OneHotFigures:
    costs = {
        way: None if entry[way] is None else Cost(**entry[way]) for way in ("one_hot", "lookup")
    }
    return OneHotFigures(**{**entry, **costs})

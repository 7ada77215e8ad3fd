"""What this machine does at most, measured by workers that are all busy at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any, get_args

import torch
import torch.distributed as dist

from dist_embed.bench.workers import LOG_FOLDER, TIMEOUT_SECONDS, Say, meet
from dist_embed.cluster.local import launch_local
from dist_embed.observe.events import Emit
from dist_embed.observe.quiet import redirect_output
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.collectives import stack_over_workers
from dist_embed.parallel.device import has_native_bf16
from dist_embed.parallel.group import Group, joined_group
from dist_embed.planning.machine import Collective

INNER = (64, 128, 512)  # of products
ROW_BYTES = (256, 512, 2048)  # of rows that are gathered
EXCHANGE_BYTES = {1 << 10: 30, 1 << 22: 12}  # that a worker sends, and how often
_PRODUCT_TOKENS, _PRODUCT_VALUES = 256, 1 << 21  # a block of logits is as large
_COPIED_BYTES, _TABLE_BYTES, _GATHERED_ROWS = 1 << 26, 1 << 28, 1 << 14
_SMALL_OPERATIONS = 3
_SECONDS = 0.4  # for each thing that is measured

Speeds = dict[str, Any]


def measure_speeds(cores: int, workers: list[int], say: Say) -> Speeds:
    """Keys of a machine file: products, copies, gathers and operations with a worker on each of
    ``cores``, exchanges with each number of ``workers``.
    """
    say(f"products, copies, gathers: {cores} workers")
    found: Speeds = _launched(_work, cores)
    found["exchanges"] = []
    for number in workers:
        say(f"exchanges: {number} workers")
        found["exchanges"] += _launched(_exchanges, number)
    return found


def _launched(measure: Callable[[Group], Any], num_workers: int) -> Any:
    return launch_local(
        _measured, (measure,), num_workers=num_workers, on_event=lambda event: None,
        log_folder=str(LOG_FOLDER),
    )  # fmt: skip


def _measured(measure: Callable[[Group], Any], emit: Emit) -> Any:
    del emit
    torch.set_num_threads(1)
    keep_freed_memory()  # as every run's workers do
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group("cpu", TIMEOUT_SECONDS) as group:
        return measure(group)


def _work(group: Group) -> Speeds:
    """Of one worker, while its peers do the same. Collective."""

    def seconds(call: Callable[[], object]) -> float:
        meet(group)
        return _median_seconds(call)

    types = [("fp32", torch.float32)]
    if has_native_bf16(group.device):
        types.append(("bf16", torch.bfloat16))
    products = []
    for name, dtype in types:
        for inner in INNER:
            a = torch.randn(_PRODUCT_TOKENS, inner).to(dtype)
            b = torch.randn(inner, _PRODUCT_VALUES // _PRODUCT_TOKENS).to(dtype)
            out = torch.empty(_PRODUCT_TOKENS, b.shape[1], dtype=dtype)
            taken = seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))  # type: ignore[misc]
            gflops = 2e-9 * _PRODUCT_VALUES * inner / taken
            products.append({"type": name, "inner": inner, "gflops": gflops})
    one, two = torch.ones(_COPIED_BYTES // 4), torch.empty(_COPIED_BYTES // 4)
    copied = 2 * _COPIED_BYTES / seconds(lambda: two.copy_(one))
    gather = []
    for row_bytes in ROW_BYTES:
        table = torch.ones(_TABLE_BYTES // row_bytes, row_bytes // 4)
        rows = torch.randint(len(table), (_GATHERED_ROWS,))
        taken = seconds(lambda t=table, r=rows: t.index_select(0, r))  # type: ignore[misc]
        gather.append({"row_bytes": row_bytes, "gb_s": 1e-9 * row_bytes * len(rows) / taken})
    return {
        "products": products, "memory_gb_s": 1e-9 * copied, "gather": gather,
        "operation_us": 1e6 * seconds(_small_operations(len(types) > 1)) / _SMALL_OPERATIONS,
    }  # fmt: skip


def _small_operations(narrow: bool) -> Callable[[], object]:
    """Three, as a layer has them, of so few values that starting them is what takes time."""
    layers = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 64), torch.nn.ReLU())
    few = torch.randn(8, 64)

    def call() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            found: torch.Tensor = layers(few)
        return found

    return call


def _exchanges(group: Group) -> list[Speeds]:
    """All kinds of collectives. Collective."""
    return [_exchange(group, kind) for kind in get_args(Collective)]


def _exchange(group: Group, kind: Collective) -> Speeds:
    """What one without bytes takes, and how many bytes a second a worker sends."""
    points = []
    others, own = group.num_workers - 1, 1 / group.num_workers
    parts = {"all_to_all": others * own, "all_gather": others, "all_reduce": 2 * others * own}
    for size, times in EXCHANGE_BYTES.items():
        # Zeros, which stay what they are when they are summed up.
        values = torch.zeros(size // 4 // group.num_workers * group.num_workers)
        out = torch.empty_like(values)

        def call(values: torch.Tensor = values, out: torch.Tensor = out) -> None:
            if kind == "all_to_all":
                dist.all_to_all_single(out, values, group=group.process_group)
            elif kind == "all_gather":
                stack_over_workers(values, group)
            else:
                dist.all_reduce(values, group=group.process_group)

        points.append((values.nbytes * parts[kind], _median_of(call, times, group)))
    (least, latency), (most, longest) = points
    gb_s = 1e-9 * (most - least) / max(longest - latency, 1e-9)
    return {"kind": kind, "workers": group.num_workers, "latency_us": 1e6 * latency, "gb_s": gb_s}


def _median_of(call: Callable[[], object], times: int, group: Group) -> float:
    """All workers call as often. Collective."""
    taken = []
    meet(group)
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return median(taken[times // 4 :])


def _median_seconds(call: Callable[[], object]) -> float:
    """As often as time allows, after calls that do not count."""
    for _ in range(3):
        call()
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(taken) < 5 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return median(taken)

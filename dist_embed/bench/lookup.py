"""A step's lookup and update of one table on one device, beside FBGEMM's kernel and a copy.

Timed is what training does with a table: from a step's distinct rows, which it finds in the
loader's thread, to a vector for every id, and on from a gradient for every id to updated rows.
FBGEMM's own kernel, which ours calls with the distinct rows, is timed on the same table with the
same ids, repeated ones too, each in a bag of its own.

Counted are the bytes that any way has to move. A lookup reads each distinct row once and writes a
float32 vector for every id. An update reads a float32 gradient for every id, and reads and writes
each distinct row and its optimizer's state. Not counted are ids, and what a way moves beside that.
Of a copy what it reads and what it writes is counted. Every step has ids of its own, and every
measurement begins with an empty cache, where rows have one, and with steps that do not count; but
for what the profiler tells of the device, which is the mean of a few steps after these.

FBGEMM's public case is 1,048,570 ids in 10 tables of 1.68 million rows of width 128. A lookup here
has one table of 16.8 million (``power-law`` in `dist_embed.bench.lookup_draws`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeVar

import torch

from dist_embed.bench.device_work import work_seconds
from dist_embed.bench.lookup_cases import Case, Work, possible_cases
from dist_embed.bench.lookup_draws import draw_ids
from dist_embed.bench.lookup_ways import LookupWays
from dist_embed.bench.passes import WARM_UP, copy_seconds, median_seconds
from dist_embed.embedding.settings import Tier, Weights
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.device import device_name, resolve_device
from dist_embed.parallel.group import Group, lone_group
from dist_embed.parallel.settings import DeviceChoice

_COPIED_BYTES = 2**29  # at most; far more than caches hold
TIMEOUT_SECONDS = 60.0
_FEW = WARM_UP + 5  # steps, of what takes long and is told beside the rest
Item = TypeVar("Item")


@dataclass(frozen=True)
class Seconds:
    """Of a step: the median, of what ends in ``busy`` the mean of a few.

    Attributes:
        kernel_lookup: FBGEMM's kernel: a vector for every id.
        kernel_update: the same and its backward.
        kernel_update_on_device: what of it are operations of the device; see `work_seconds`.
        request: ours: distinct rows, sent to the worker that holds them, which is this one.
        lookup: the same and on to a vector for every id.
        update: the same and its backward.
        update_on_device: what of it are operations of the device.
        distinct: to find the distinct rows on the device; in none of the others.
        distinct_on_host: the same on the host, where training does it.
    """

    kernel_lookup: float
    kernel_update: float
    kernel_update_on_device: float
    request: float
    lookup: float
    update: float
    update_on_device: float
    distinct: float
    distinct_on_host: float


@dataclass(frozen=True)
class Found:
    """What was found of a table.

    Attributes:
        case: the table.
        distinct_ids: of a step, median.
        lookup_bytes: what a lookup has to move.
        update_bytes: what lookup and update have to move.
        seconds: what they took.
    """

    case: Case
    distinct_ids: int
    lookup_bytes: int
    update_bytes: int
    seconds: Seconds


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        device: its name.
        work: what was looked up.
        copied_bytes: read and written by a copy within the device.
        copy_seconds: median.
        found: by table.
    """

    device: str
    work: Work
    copied_bytes: int
    copy_seconds: float
    found: list[Found]

    @property
    def copy_rate(self) -> float:
        """Bytes a second."""
        return self.copied_bytes / self.copy_seconds


def lookup_report(
    device_type: DeviceChoice, work: Work, *, num_rows: int,
    fill: float | None, memories: Sequence[Tier], weights: Sequence[Weights],
    optimizers: Sequence[str], say: Callable[[str], None],
) -> Report:  # fmt: skip
    """Measure a table of each kind, one after the other, in this process.

    Args:
        device_type: where.
        work: what is looked up.
        num_rows, fill, memories, weights, optimizers: see `possible_cases`.
        say: is told which table is measured.

    Raises:
        UserError: a table is not possible on this device, or does not fit. Nothing has been
            allocated.
        RunFailed: see `LookupWays.check`. Nothing has been timed of that table.
    """
    resolved = resolve_device(device_type)
    cases = possible_cases(
        torch.device(resolved), work, num_rows=num_rows, fill=fill, memories=memories,
        weights=weights, optimizers=optimizers,
    )  # fmt: skip
    if resolved == "cpu":
        keep_freed_memory()  # as every run's workers do
    with lone_group(resolved, TIMEOUT_SECONDS) as group:
        copied = min(_COPIED_BYTES, max(work.table_bytes(case) for case in cases))
        copy_took = copy_seconds(copied, work.repeats, group.device)
        found = []
        for case in cases:
            say(str(case))
            gc.collect()  # the table before may be as large
            if resolved == "cuda":
                torch.cuda.empty_cache()
            found.append(measure(case, work, group))
        return Report(device_name(group.device), work, 2 * copied, copy_took, found)


def measure(case: Case, work: Work, group: Group) -> Found:
    """Build a table, check what is looked up and updated, and time it. Collective.

    Raises:
        RunFailed: see `LookupWays.check`.
    """
    device = group.device
    steps = [
        draw_ids(work.draw, case.num_rows, work.num_ids, seed, device)
        for seed in range(WARM_UP + work.repeats)
    ]
    ways = LookupWays(case, work, group)
    ways.check(steps[0])
    rows = [ways.tables.orders["shared"].rows_of(ids) for ids in steps]
    wanted = [ways.wanted(ids) for ids in steps]

    def seconds_of(call: Callable[[Item], object], items: Sequence[Item]) -> float:
        ways.begin()
        return median_seconds(call, items, device)

    with torch.no_grad():
        kernel_lookup = seconds_of(ways.kernel_lookup, rows)
        request = seconds_of(lambda some: ways.tables.request(some).arrived(), wanted)
        lookup = seconds_of(ways.lookup, wanted)
    kernel_update = seconds_of(ways.kernel_update, rows)
    update = seconds_of(ways.update, wanted)
    # After what is compared: a profiler that has been on may leave something behind.
    seconds = Seconds(
        kernel_lookup=kernel_lookup,
        kernel_update=kernel_update,
        kernel_update_on_device=work_seconds(ways.kernel_update, rows[:_FEW], device),
        request=request,
        lookup=lookup,
        update=update,
        update_on_device=work_seconds(ways.update, wanted[:_FEW], device),
        distinct=seconds_of(ways.wanted, steps),
        distinct_on_host=median_seconds(
            ways.wanted, [ids.cpu() for ids in steps[:_FEW]], torch.device("cpu")
        ),
    )
    distinct = int(median(len(some.rows["shared"]) for some in wanted))
    return Found(case, distinct, *work.bytes_to_move(case, distinct), seconds)


def lookup_lines(report: Report) -> list[str]:
    """What stands above the table."""
    work = report.work
    lines = [
        f"{work.num_ids:,} ids a step ({work.draw}) × {work.width} on {report.device}; median of "
        f"{work.repeats} steps; counted is what any way has to move",
        f"copy of {report.copied_bytes // 2:,} bytes within the device: "
        f"{1e3 * report.copy_seconds:.3f} ms, {report.copy_rate / 1e9:,.1f} GB/s read and written",
    ]
    for one in report.found:
        took = one.seconds
        lines.append(
            f"{one.case}: {one.distinct_ids:,} distinct ids, found in {1e3 * took.distinct:.3f} ms "
            f"on the device, or in {1e3 * took.distinct_on_host:.3f} ms on the host, as training "
            "does it beforehand; not in the table"
        )
    return lines


def lookup_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each table's by FBGEMM and by us."""
    header = ["table", "by"]
    for what in ("lookup", "lookup + update"):
        header += [f"{what}: ms", "GB/s", "of the copy", "÷ FBGEMM"]
    header.append("of it device: ms")
    rows = []
    for one in report.found:
        moved = (one.lookup_bytes, one.update_bytes)
        kernel = (one.seconds.kernel_lookup, one.seconds.kernel_update)
        ours = (one.seconds.lookup, one.seconds.update)
        for by, taken, busy in (
            ("FBGEMM", kernel, one.seconds.kernel_update_on_device),
            ("dist_embed", ours, one.seconds.update_on_device),
        ):
            rows.append([str(one.case), by])
            for size, seconds, kernel_seconds in zip(moved, taken, kernel, strict=True):
                rate = size / seconds
                rows[-1] += [
                    f"{1e3 * seconds:.3f}", f"{rate / 1e9:,.1f}",
                    f"{100 * rate / report.copy_rate:.1f} %", f"{seconds / kernel_seconds:.2f}",
                ]  # fmt: skip
            rows[-1].append(f"{1e3 * busy:.3f}")
    return header, rows


def lookup_figures(report: Report) -> dict[str, Any]:
    """For a JSON file: sizes in bytes, times in seconds."""
    return asdict(report)

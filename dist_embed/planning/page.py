"""A plan, or several for different numbers of workers, as a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dist_embed.planning.estimate import Plan, Remedy

Row = list[str]


def overview(plans: Sequence[Plan]) -> tuple[Row, list[Row]]:
    """Header and rows of a table with a plan in each."""
    header = ["workers", "rows a worker", "memory a worker", "fits", "ms a step", "target tokens/s",
              "efficiency", "sent a step and worker", "checkpoint"]  # fmt: skip
    first = plans[0].tokens_per_second / plans[0].workers
    return header, [
        [
            f"{one.workers:,}",
            f"{one.rows_per_worker[1]:,}",
            size(one.memory_bytes),
            "refused" if one.refused else "yes" if one.fits else "no",
            f"{1000 * one.step_seconds:,.1f}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.tokens_per_second / one.workers / first:.2f}",
            size(sum(one.traffic.values())),
            f"{size(one.checkpoint.bytes)}, {one.checkpoint.seconds:,.1f} s",
        ]
        for one in plans
    ]


def memory_table(one: Plan) -> tuple[Row, list[Row]]:
    """Memory of a worker by part, the largest first."""
    where = [("GPU" if one.host_memory else "process", one.memory)]
    where += [("host", one.host_memory)] if one.host_memory else []
    rows = [
        [place, part, size(count)]
        for place, parts in where
        for part, count in sorted(parts.items(), key=lambda item: -item[1])
        if count
    ]
    return ["where", "part", "bytes"], rows


def time_table(one: Plan) -> tuple[Row, list[Row]]:
    """Where a step's time goes, in the order of a step."""
    rows = [
        [name, f"{1000 * seconds:,.2f}", f"{seconds / one.step_seconds:.0%}"]
        for name, seconds in one.phases.items()
    ]
    rest = one.step_seconds - sum(one.phases.values())
    rows.append(["beside these", f"{1000 * rest:,.2f}", f"{rest / one.step_seconds:.0%}"])
    return ["phase", "ms", "share"], rows


def traffic_table(one: Plan) -> tuple[Row, list[Row]]:
    """What a worker sends in a step."""
    rows = [[name, size(count)] for name, count in one.traffic.items()]
    return ["sent", "bytes"], rows + [
        [f"of all, {name}", size(count)] for name, count in one.links.items()
    ]


def verdict_lines(one: Plan) -> list[str]:
    """What limits it, and what would change that."""
    state = "refused" if one.refused else "fits" if one.fits else "does not fit"
    lines = [f"{one.workers:,} workers: {state}. First limit: {one.bottleneck}"]
    if not one.fits and not any(remedy.fits for remedy in one.remedies):
        lines.append("no single change makes it fit; together they may")
    return lines + [f"  {_told(remedy, one)}" for remedy in one.remedies]


def _told(remedy: Remedy, before: Plan) -> str:
    if before.fits:
        faster = remedy.tokens_per_second / before.tokens_per_second
        return f"{remedy.change}: {faster:.2f} times the tokens/s, {size(remedy.memory_bytes)}"
    fits = "fits" if remedy.fits else "still does not fit"
    less = f"{size(remedy.memory_bytes)} instead of {size(before.memory_bytes)}"
    if before.lacking == "host":
        less = f"{size(remedy.host_memory_bytes)} instead of {size(before.host_memory_bytes)}"
        less += " on the host"
    return f"{remedy.change}: {less}, {fits}"


def remarks(one: Plan) -> list[str]:
    """What the figures rest on."""
    asked = (
        "words as often as in the prepared data"
        if one.prepared
        else "no prepared data: at most tokenizer.vocab_size words, as often as by Zipf's law"
    )
    return [
        f"machine {one.machine}: {one.machine_source}",
        f"{asked}; {one.distinct_rows:,.0f} distinct rows a step and worker",
        f"a worker that is asked for most rows is asked for {one.request_balance:.2f} times the "
        f"mean; rows a worker: {one.rows_per_worker[0]:,} to {one.rows_per_worker[1]:,}",
        f"a checkpoint: training waits {one.checkpoint.stall_seconds:,.2f} s, loading takes "
        f"{one.checkpoint.load_seconds:,.1f} s",
    ]


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count / 1024:,.1f} KiB"

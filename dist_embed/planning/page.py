"""A plan, or several for different numbers of workers, as a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dist_embed.planning.checkpoint import CheckpointPlan
from dist_embed.planning.efficiency import Size, efficiencies
from dist_embed.planning.estimate import Plan, Remedy

Row = list[str]

# What is not built is told to whom it would give so many times the tokens/s.
LEAST_GAIN = 1.01


def overview(plans: Sequence[Plan]) -> tuple[Row, list[Row]]:
    """Header and rows of a table with a plan in each."""
    header = ["workers", "rows a worker", "memory a worker", "fits", "ms a step", "target tokens/s",
              "efficiency", "sent a step and worker", "checkpoint"]  # fmt: skip
    _, efficiency = efficiencies(
        [
            Size(
                one.workers, one.threads, one.tokens_per_second, one.fits and not one.oversubscribed
            )
            for one in plans
        ]
    )
    return header, [
        [
            f"{one.workers:,}",
            f"{one.rows_per_worker[1]:,}",
            size(one.memory_bytes),
            "refused" if one.refused else "yes" if one.fits else "no",
            f"{1000 * one.step_seconds:,.1f}",
            f"{one.tokens_per_second:,.0f}",
            "–" if used is None else f"{used:.2f}",
            size(sum(one.traffic.values())),
            f"{size(one.checkpoint.bytes)}, {one.checkpoint.seconds:,.1f} s",
        ]
        for one, used in zip(plans, efficiency, strict=True)
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
    lines += [f"  {remedy.change}: {given(remedy, one)}" for remedy in one.remedies]
    return lines + [
        f"  not built: {remedy.change}: {given_by_speed(remedy, one)}"
        for remedy in one.not_built
        if remedy.tokens_per_second >= LEAST_GAIN * one.tokens_per_second
    ]


def given(remedy: Remedy, before: Plan) -> str:
    """What a remedy gives: memory where that lacks, else speed."""
    if before.fits:
        return given_by_speed(remedy, before)
    fits = "fits" if remedy.fits else "still does not fit"
    less = f"{size(remedy.memory_bytes)} instead of {size(before.memory_bytes)}"
    if before.lacking == "host":
        less = f"{size(remedy.host_memory_bytes)} instead of {size(before.host_memory_bytes)}"
        less += " on the host"
    return f"{less}, {fits}"


def given_by_speed(remedy: Remedy, before: Plan) -> str:
    """What a remedy gives where memory suffices; what is not built may need more than there is."""
    faster = remedy.tokens_per_second / before.tokens_per_second
    lacks = ", does not fit" if before.fits and not remedy.fits else ""
    return (
        f"{1000 * remedy.step_seconds:,.1f} ms a step instead of "
        f"{1000 * before.step_seconds:,.1f}, {faster:.2f} times the tokens/s, "
        f"{size(remedy.memory_bytes)}{lacks}"
    )


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
        f"rows a worker: {one.rows_per_worker[0]:,} to {one.rows_per_worker[1]:,}",
        *pressures(one),
    ]


def pressures(one: Plan) -> list[str]:
    """What grows with the workers, whatever it is that limits a step first."""
    told = [
        f"planning the batches: {1000 * one.planning_seconds:,.1f} ms of each worker's processor "
        f"time a step, for which it waits {1000 * one.spent['data']:,.1f} ms",
        f"the worker that is asked for most rows is asked for {one.request_balance:,.2f} times the "
        f"mean: {1000 * one.spent['hot']:,.1f} ms a step",
    ]
    if gathered := one.traffic.get("hidden states"):
        held = one.memory.get("tokens of all workers", 0)
        told.append(
            f"hidden states of all tokens: {size(gathered)} a step to each worker, which holds "
            f"{size(held)} for them"
        )
    return [*told, checkpoint_line(one.checkpoint)]


def checkpoint_line(one: CheckpointPlan) -> str:
    """How fast it is stored, how long training waits, and how often there is one."""
    said = (
        f"a checkpoint: {size(one.bytes / one.seconds)} a second of all nodes together; training "
        f"waits {one.stall_seconds:,.2f} s, loading takes {one.load_seconds:,.1f} s"
    )
    if one.steps and one.due_steps and one.steps > one.due_steps:
        said += (
            f"; due each {one.due_steps:,.0f} steps, but one takes as long as {one.steps:,.0f}: so "
            "often there is one"
        )
    return said


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count / 1024:,.1f} KiB"

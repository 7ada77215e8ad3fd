"""What a trace of torch.profiler tells of some steps.

Read from the file that it writes (Chrome's trace events): operators of the host, the calls of CUDA
that it makes, and what runs on the device. Of the file counts what begins within an annotation
`WINDOW`, in which every step is annotated as `STEP` (`observe.phases`). The device is to be waited
for just before the window, and at its end, behind the last step.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dist_embed.observe.phases import STEP

WINDOW = "dist_embed: steps"
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cpu_op", "cuda_runtime", "cuda_driver")
# Calls that wait for the device, or that may: memory is taken and given back in its turn. Of copies
# cudaMemcpyAsync does not; where PyTorch waits for one, it calls cudaStreamSynchronize.
_BLOCKING = re.compile(
    r"cuda(DeviceSynchronize|StreamSynchronize|EventSynchronize|Memcpy(2D|3D|ToSymbol|FromSymbol)?"
    r"|Malloc(Host|Managed)?|Free(Host)?|HostAlloc|Host(Unr|R)egister)(_v\d+)?(_ptsz)?"
)

Event = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """All events of one name.

    Attributes:
        name: of a kernel, an operator, a call of CUDA.
        within: of what waits: the outermost and the innermost operator around it.
        calls: how many in a step.
        seconds: how long in a step; on the host without what is within it.
    """

    name: str
    within: str
    calls: float
    seconds: float


@dataclass(frozen=True)
class TraceFigures:
    """What was found, by step.

    Attributes:
        steps: how many there were.
        seconds: of the host's clock.
        busy_seconds: in which the device did anything; None where nothing of one was recorded.
        on_device: kernels, copies and fills, the longest first.
        on_host: operators and calls of CUDA, the longest first.
        waits: calls within steps by which the host waits for the device.
    """

    steps: int
    seconds: float
    busy_seconds: float | None
    on_device: list[Entry]
    on_host: list[Entry]
    waits: list[Entry]


def read_trace(path: str) -> TraceFigures:
    """The figures of the compressed file that ``export_chrome_trace`` has written.

    Raises:
        ValueError: it has not one window, or no step in it.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events: list[Event] = [e for e in json.load(file)["traceEvents"] if e.get("ph") == "X"]
    windows = [e for e in events if _is(e, WINDOW)]
    if len(windows) != 1:
        raise ValueError(f"{path}: {len(windows)} windows of steps; one is needed")
    events = sorted(_begun_in(windows, events), key=lambda e: (e["ts"], -e["dur"]))
    steps = [e for e in events if _is(e, STEP)]
    if not steps:
        raise ValueError(f"{path}: no step")
    count = len(steps)
    device = [e for e in events if e.get("cat") in _ON_DEVICE]
    # Annotations of libraries tell where something is called, and take no time of their own.
    host = [e for e in events if e.get("cat") in (*_ON_HOST, "user_annotation")]
    host = [e for e in host if not _is(e, WINDOW) and not _is(e, STEP)]
    on_host, waits = [], []
    in_steps = {id(event) for event in _begun_in(steps, host)}
    for event, around, own in _nested(host):
        if event["cat"] in _ON_HOST:
            on_host.append((event["name"], "", own))
        if id(event) in in_steps and _BLOCKING.fullmatch(event["name"]):
            within = " › ".join(dict.fromkeys(e["name"] for e in around[:1] + around[-1:]))
            waits.append((event["name"], within, event["dur"]))
    return TraceFigures(
        steps=count,
        seconds=windows[0]["dur"] / 1e6 / count,
        busy_seconds=_covered(device) / 1e6 / count if device else None,
        on_device=_entries(((e["name"], "", e["dur"]) for e in device), count),
        on_host=_entries(on_host, count),
        waits=_entries(waits, count),
    )


def _is(event: Event, annotation: str) -> bool:
    # A GPU's timeline has annotations too ("gpu_user_annotation").
    return event["name"] == annotation and event.get("cat") == "user_annotation"


def _begun_in(spans: list[Event], events: Iterable[Event]) -> Iterator[Event]:
    """Those of ``events`` that begin within one of ``spans``, in any thread."""
    for event in events:
        if any(span["ts"] <= event["ts"] < span["ts"] + span["dur"] for span in spans):
            yield event


def _nested(events: list[Event]) -> Iterator[tuple[Event, list[Event], float]]:
    """Each event with those around it in its thread, outermost first, and its own µs: without those
    directly within it. ``events`` are sorted by their begin, longer ones first.
    """
    inner: dict[int, float] = {}
    placed = []
    stacks: dict[Any, list[Event]] = {}
    for event in events:
        around = stacks.setdefault((event["pid"], event["tid"]), [])
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        if around:
            inner[id(around[-1])] = inner.get(id(around[-1]), 0.0) + event["dur"]
        placed.append((event, list(around)))
        around.append(event)
    for event, around in placed:
        yield event, around, max(0.0, event["dur"] - inner.get(id(event), 0.0))


def _covered(events: list[Event]) -> float:
    """µs in which at least one of ``events`` lasts, which are sorted by their begin."""
    covered, end = 0.0, 0.0
    for event in events:
        begin, last = max(event["ts"], end), event["ts"] + event["dur"]
        if last > begin:
            covered += last - begin
            end = last
    return covered


def _entries(found: Iterable[tuple[str, str, float]], steps: int) -> list[Entry]:
    """By name and place, the longest first."""
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for name, within, micros in found:
        calls, total = sums.get((name, within), (0, 0.0))
        sums[name, within] = calls + 1, total + micros
    entries = [
        Entry(name, within, calls / steps, total / 1e6 / steps)
        for (name, within), (calls, total) in sums.items()
    ]
    return sorted(entries, key=lambda entry: -entry.seconds)

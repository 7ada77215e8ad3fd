"""Seconds that a call takes on a device, by its events; and of these the seconds of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from dist_embed.bench.passes import Marks

WARM_UP = 3  # calls that do not count
Item = TypeVar("Item")


def median_seconds(
    call: Callable[[Item], object], items: Sequence[Item], device: torch.device
) -> float:
    """Of ``call`` on each item, when the device has nothing else to do, until all that it asks of
    the device is done; the first `WARM_UP` do not count.
    """
    taken = []
    for item in items:
        marks = Marks(device)
        call(item)
        marks("call")
        taken.append(marks.seconds()["call"])
    return median(taken[WARM_UP:])


def busy_seconds(
    call: Callable[[Item], object], items: Sequence[Item], device: torch.device
) -> float:
    """Of a ``call``, mean over the items: what PyTorch's profiler counts of kernels and copies on a
    GPU, of operations on the CPU. The rest of `median_seconds` is the host's, or waiting.
    """
    on_gpu = device.type == "cuda"
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for item in items:
            call(item)
        if on_gpu:
            torch.cuda.synchronize()
    micros = sum(
        event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
        for event in seen.events()
        if event.device_type == kind
        and not event.is_user_annotation  # which covers others
        and event.name != "Context Sync"
    )
    return float(micros) / 1e6 / len(items)


def copy_seconds(size: int, repeats: int, device: torch.device) -> float:
    """Median of copying ``size`` bytes within the device."""
    one, two = (torch.ones(size // 4, device=device) for _ in range(2))
    return median_seconds(lambda _: one.copy_(two), range(WARM_UP + repeats), device)

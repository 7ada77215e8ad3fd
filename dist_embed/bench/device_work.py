"""What of a call is a device's own work, by PyTorch's profiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

Item = TypeVar("Item")


def work_seconds(
    call: Callable[[Item], object], items: Sequence[Item], device: torch.device
) -> float:
    """Of a ``call``, mean over the items: what PyTorch's profiler counts of kernels and copies on a
    GPU, of operations on the CPU; nan where it has seen none. The rest of `passes.median_seconds`
    is the host's, or waiting.
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
        and event.name != "Context Sync"  # the host's waiting, which CUPTI tells as the device's
    )
    return float(micros) / 1e6 / len(items) if micros else math.nan

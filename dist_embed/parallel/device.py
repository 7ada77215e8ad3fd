"""Which device a worker computes on, and in which precision."""

from __future__ import annotations

import platform
import resource
from typing import Literal

import torch

from dist_embed.errors import UserError
from dist_embed.parallel.settings import DeviceChoice, Precision


def resolve_device(wanted: DeviceChoice, *, name: str = "cluster.device") -> Literal["cpu", "cuda"]:
    """The device type to use. Raises UserError for CUDA on a machine without.

    ``name`` is that of the setting.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{name}='cuda' is not possible here: PyTorch finds no CUDA device; use 'cpu' or 'auto'"
        )
    return wanted


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively (CUDA from Ampere; AVX512-BF16; AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """The type of matrix products: float32 or bfloat16."""
    if wanted == "auto":
        wanted = "bf16" if has_native_bf16(device) else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def seed_random_draws(seed: int, device: torch.device) -> None:
    """Seed what draws on ``device``, and on the CPU.

    `torch.manual_seed` also keeps a traceback for each kind of device that is not in use, which
    takes a millisecond: too long for something that is done in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in memory of the host from which a GPU copies by itself; on a GPU as it is."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def memory_bytes(device: torch.device) -> int:
    """All memory of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def device_name(device: torch.device) -> str:
    """A name a reader can compare figures by."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: resident on the CPU, allocated on CUDA."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

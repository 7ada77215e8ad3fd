"""The device that the tests of this folder run on, and what it has.

``DIST_EMBED_TEST_DEVICE`` names it. Without that it is the first GPU where there is one, and else
the CPU: what only a GPU reaches is then left out, all else is run, so that a test's mistake is
found before the test meets a GPU.
"""

from __future__ import annotations

import os
from typing import Literal

import pytest
import torch

from dist_embed.embedding.settings import Tier, Weights
from dist_embed.parallel.device import resolve_device

VARIABLE = "DIST_EMBED_TEST_DEVICE"


def chosen(wanted: str) -> Literal["cpu", "cuda"]:
    """Raises UserError for a GPU that is not there, so that nothing passes on another device."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"{VARIABLE}={wanted} is not allowed: cpu, cuda or auto")
    return resolve_device(wanted)  # type: ignore[arg-type]


DEVICE = chosen(os.environ.get(VARIABLE, "auto"))
# What the tables' settings can be there (dist_embed/config/cuda_only.py).
IN_HOST_MEMORY: list[Tier] = ["uvm", "uvm_caching"] if DEVICE == "cuda" else []
TIERS: list[Tier] = ["device", *IN_HOST_MEMORY]
WEIGHTS: list[Weights] = ["fp32", "fp16"] if DEVICE == "cuda" else ["fp32"]
OPTIMIZERS = ["rowwise_adagrad", "adagrad", "sgd", *(["adam"] if DEVICE == "cuda" else [])]

on_cuda_alone = pytest.mark.skipif(DEVICE != "cuda", reason="means nothing on a CPU")


def synchronise() -> None:
    """Wait until the device has done all that it was asked for."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()

"""Which functions let a GPU's host wait, as PyTorch warns of it."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fbgemm_gpu
import torch
import torchrec

_PACKAGES = {
    str(Path(__file__).parents[1]): "dist_embed",
    str(Path(torchrec.__file__).parent): "torchrec",
    str(Path(fbgemm_gpu.__file__).parent): "fbgemm_gpu",
}


def calling_place() -> str:
    """Package, file and function that called the caller, of those whose calls are told apart."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        for folder, name in _PACKAGES.items():
            if path.startswith(f"{folder}/"):
                return f"{name}{path[len(folder) :]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@contextmanager
def told_waits() -> Iterator[Counter[str]]:
    """How often each place let the host wait, in all threads, as PyTorch warns of it on a GPU.

    By the innermost function of the packages that are told apart: the warnings themselves name
    PyTorch's own files where these make the call. What FBGEMM and NCCL ask CUDA themselves, PyTorch
    does not see.
    """
    found: Counter[str] = Counter()

    def noted(message: Warning | str, *_: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[calling_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted  # type: ignore[assignment]
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")

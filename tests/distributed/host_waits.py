"""Finds what makes a GPU's host wait for the device: on the CPU by what the code calls, on a GPU by
what CUDA says.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fbgemm_gpu
import pytest
import torch
import torchrec
from torch.utils._python_dispatch import TorchDispatchMode

import dist_embed

# Whose result, or whose shape of it, the host asks for.
OPERATIONS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "bincount", "repeat_interleave",
}  # fmt: skip
WITH_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_"}
METHODS = ["tolist", "cpu", "numpy"]
PACKAGES = {
    str(Path(package.__file__ or "").parent): package.__name__
    for package in (dist_embed, torchrec, fbgemm_gpu)
}


def _place() -> str:
    """Package, file and function that called, of those whose calls are told apart."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        for folder, name in PACKAGES.items():
            if path.startswith(f"{folder}/"):
                return f"{name}{path[len(folder) :]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Waits(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_answers = name in WITH_INDICES and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in OPERATIONS or by_answers:
            self._found[_place()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """How often each place asks for an answer of the device, in this thread and block."""
    found: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            plain = getattr(torch.Tensor, name)

            def noted(self: torch.Tensor, *args: Any, plain: Any = plain, **how: Any) -> Any:
                found[_place()] += 1
                return plain(self, *args, **how)

            patch.setattr(torch.Tensor, name, noted)
        with _Waits(found):
            yield found


@contextmanager
def told_waits() -> Iterator[Counter[str]]:
    """How often each place let the host wait, in all threads, as PyTorch warns of it on a GPU.

    By the innermost function of the packages that are told apart: the warnings themselves name
    PyTorch's own files where these make the call.
    """
    found: Counter[str] = Counter()

    def noted(message: Warning | str, *_: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[_place()] += 1

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

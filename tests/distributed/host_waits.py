"""Finds what makes a GPU's host wait for the device: on the CPU by what the code calls, on a GPU by
what PyTorch tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_embed.bench.host_waits import calling_place

# Whose result, or whose shape of it, the host asks for.
OPERATIONS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "bincount", "repeat_interleave",
}  # fmt: skip
WITH_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_"}
METHODS = ["tolist", "cpu", "numpy"]


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
            self._found[calling_place()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """How often each place asks for an answer of the device, in this thread and block."""
    found: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            plain = getattr(torch.Tensor, name)

            def noted(self: torch.Tensor, *args: Any, plain: Any = plain, **how: Any) -> Any:
                found[calling_place()] += 1
                return plain(self, *args, **how)

            patch.setattr(torch.Tensor, name, noted)
        with _Waits(found):
            yield found

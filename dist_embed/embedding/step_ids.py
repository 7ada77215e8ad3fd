"""The ids that a step gives, as tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_embed.arguments import shown
from dist_embed.errors import UserError

_ALLOWED = "ids are a tensor of whole numbers, such as torch.tensor([1, 2])"
_LARGEST = torch.iinfo(torch.int64).max


def pieces_of(name: str, given: Any) -> list[Tensor]:
    """The tensors of ids that go by one name in messages, each as `ids_of` gives it, from one
    tensor or numpy array, or any number of them. Raises UserError: they are something else.
    """
    if isinstance(given, Tensor | np.ndarray):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | dict):
        raise UserError(f"{name}: {shown(given)} is not allowed: {_ALLOWED}, or a list of tensors")
    return [ids_of(name, piece) for piece in given]


def ids_of(name: str, given: Any) -> Tensor:
    """A tensor or numpy array of any type of whole numbers, as int64.

    Raises:
        UserError: it is something else; also truth values, which would pass for 0 and 1.
    """
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        given = torch.from_numpy(given.astype(given.dtype.newbyteorder("=")))
    if not isinstance(given, Tensor):
        raise UserError(f"{name}: {shown(given)} is not allowed: {_ALLOWED}")
    dtype = given.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise UserError(f"{name}: ids are whole numbers, not {dtype}")
    ids = given.to(torch.int64)
    # What int64 has no room for would come as negative, or as another id.
    return torch.where(ids < 0, _LARGEST, ids) if dtype == torch.uint64 else ids

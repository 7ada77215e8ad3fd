"""The ids that a step gives for one feature, as tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_embed.arguments import shown
from dist_embed.errors import UserError


def pieces_of(feature: str, given: Any) -> list[Tensor]:
    """The tensors of ids of one feature, from one tensor or numpy array, or any number of them.

    Raises:
        UserError: they are something else; or truth values, which would pass for 0 and 1.
    """
    if isinstance(given, Tensor | np.ndarray):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | dict):
        raise UserError(f"feature {feature!r}: {shown(given)} is not allowed: {_ALLOWED}")
    return [_tensor(feature, piece) for piece in given]


_ALLOWED = "ids are a tensor of whole numbers, such as torch.tensor([1, 2]), or a list of tensors"


def _tensor(feature: str, piece: Any) -> Tensor:
    if isinstance(piece, np.ndarray) and piece.dtype.kind in "iu":
        piece = torch.as_tensor(piece.astype(np.int64))
    if not isinstance(piece, Tensor):
        raise UserError(f"feature {feature!r}: {shown(piece)} is not allowed: {_ALLOWED}")
    if piece.dtype == torch.bool:
        raise UserError(f"feature {feature!r}: ids are whole numbers, not {piece.dtype}")
    return piece

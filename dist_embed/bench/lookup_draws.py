"""Ids of words to be looked up, drawn in one of several ways, for measurements without a text."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dist_embed.data.zipf import zipf

Draw = Literal["distinct", "zipf", "power-law"]

# Of FBGEMM's public case: 10 tables of 1.68 million rows and 1,048,570 lookups, of which 350,280
# are distinct.
_EXPONENT = 1.05
_TABLES = 10


def draw_ids(draw: Draw, num_rows: int, count: int, seed: int, device: torch.device) -> Tensor:
    """Ids below ``num_rows``: [count] int64 on ``device``; the same for equal arguments.

    Args:
        draw: ``distinct``: each another, all equally likely; ``zipf``: `dist_embed.data.zipf`;
            ``power-law``: as `power_law`.
        num_rows: V; with ``distinct`` at least ``count``.
        count: how many.
        seed: of the draw.
        device: ``zipf`` is drawn on the host all the same.
    """
    if draw == "zipf":
        drawn = zipf(np.random.default_rng(seed), num_rows, count)
        return torch.from_numpy(drawn).to(device, torch.int64)
    generator = torch.Generator(device).manual_seed(seed)
    if draw == "distinct":
        order = torch.randperm(num_rows, generator=generator, device=device)
        return order[:count].clone()  # or the rest would be held with it
    return power_law(
        num_rows, torch.rand(count, dtype=torch.float64, generator=generator, device=device)
    )


def power_law(num_rows: int, uniform: Tensor) -> Tensor:
    """Ids as of 10 tables side by side, of a tenth of the rows each: [count] int64.

    Within a table x = i + 1 has the density x^-1.05 on [1, rows + 1), rounded down, by the inverse
    of its distribution. So the public case has as many distinct ids as are published.

    Args:
        num_rows: V; what a tenth leaves over is not drawn.
        uniform: [count] values in [0, 1), float64, one for each id.
    """
    tables = min(_TABLES, num_rows)
    rows = num_rows // tables
    power = 1 - _EXPONENT
    x = (1 + uniform * ((rows + 1) ** power - 1)) ** (1 / power)
    table = torch.arange(len(uniform), device=uniform.device) % tables
    return table * rows + (x.long() - 1).clamp_(0, rows - 1)  # rounding may reach the end

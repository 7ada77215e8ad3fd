"""``dist-embed bench output`` on a GPU: each way through the layers, which it checks itself."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from dist_embed.bench.output_sides import OutputSizes, exact_sides, sampled_sides
from dist_embed.parallel.group import Group
from tests.gpu.device import DEVICE


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1000, 1003])  # rows of a block begin where 16 bytes do, or not
def test_every_side_computes_what_plain_float32_does(group: Group, dtype: Any, rows: int) -> None:
    sizes = OutputSizes(DEVICE, dtype, 300, 32, rows, ["auto", 0.2], False, [rows], 200, 2)
    sides = list(chain(exact_sides(sizes, group), sampled_sides(sizes, group)))
    assert len(sides) == 4
    for side in sides:
        assert side.left_out is None
        assert all(min(taken) > 0 for taken in side.seconds.values())
    blocks, tiles, plain, _ = (side.beyond_bytes for side in sides)
    if DEVICE == "cuda":  # on a CPU some MiB more or less are the allocator's
        assert ["tiles" in side.name for side in sides] == [False, True, False, False]
        assert 0 < tiles < blocks < plain

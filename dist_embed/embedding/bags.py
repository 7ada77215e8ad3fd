"""The rows that a step asks for, cut into the bags by which FBGEMM's kernels work.

The vectors of a lookup come one by one: what a bag holds makes no difference to them. But on a GPU
a bag is what one thread or one warp goes through serially, before the exchange and at the owner:
a table's rows in one bag would be a loop over all of them on an idle device
(docs/decisions/0029-what-a-gpu-is-asked-for.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def in_bags(rows: dict[str, Tensor], num_bags: int, device: torch.device) -> KeyedJaggedTensor:
    """The rows of each key in ``num_bags`` bags of nearly equal length, in their order.

    TorchRec is given what it would read from the device otherwise: the host waits for nothing here.

    Args:
        rows: by key [U] row numbers.
        num_bags: for each key.
        device: theirs.
    """
    counts = [wanted.numel() for wanted in rows.values()]
    return KeyedJaggedTensor(
        keys=list(rows),
        values=torch.cat(list(rows.values())),
        lengths=_lengths(counts, num_bags, device),
        stride=num_bags,
        length_per_key=counts,
        offset_per_key=[*accumulate(counts, initial=0)],
    )


def _lengths(counts: Iterable[int], num_bags: int, device: torch.device) -> Tensor:
    """Of every bag of one key after the other: the first ones may have one more."""
    number = torch.arange(num_bags, device=device)
    shares = (divmod(count, num_bags) for count in counts)
    return torch.cat([(number < longer) + each for each, longer in shares])

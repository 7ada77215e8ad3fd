"""The norm of a step's whole gradient, dense part and tables together.

Several workers hold parts of one row's gradient. The norm of the parts is not the norm of their
sum, and would change with the number of workers. So each part goes to the row's owner, is summed
there, and the squares of the sums are added up: the norm that one process holding everything would
find (docs/decisions/0004-gradient-clipping.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dist_embed.embedding.lookup import RowLookup
from dist_embed.embedding.plan import Shard
from dist_embed.embedding.step_rows import StepRows, TableRows
from dist_embed.parallel.collectives import exchange_rows, stack_over_workers, sum_over_workers
from dist_embed.parallel.group import Group


def table_gradient_square_sum(rows: StepRows, lookup: RowLookup) -> Tensor:
    """Sum of squares of the tables' gradients, the same on every worker: scalar, float32.

    The leaves' gradients are W times a worker's part, as `StepRows.backward` expects, that of all
    own rows is the sum itself. Collective.
    """
    group = lookup.group
    total = torch.zeros((), device=group.device)
    for name, table in rows.tables.items():
        total += _owned_square_sum(table, rows.own_gradient(name), lookup.shards[name], group)
    return sum_over_workers(total, group)


def _owned_square_sum(table: TableRows, own: Tensor | None, shard: Shard, group: Group) -> Tensor:
    """Sum of squares of the summed gradients of the rows that this worker owns."""
    gradient = table.vectors.grad
    if gradient is None:
        gradient = torch.zeros_like(table.vectors)
    row_numbers, parts = _parts_at_owner(table.rows, gradient, shard, group)
    touched, place = torch.unique(row_numbers, return_inverse=True)
    sums = torch.zeros((len(touched), gradient.shape[1]), device=gradient.device)
    sums.index_add_(0, place, parts).div_(group.num_workers)  # `alpha` takes three times as long
    if own is None:
        return sums.square().sum()
    # |own + sums|² without a copy of own: |own|² + sums · (sums + 2 own) on the touched rows.
    cross = sums * (sums + 2 * own[touched - shard.first_row])
    # By rows: the norm of the whole, in float32 on the CPU, is off by a percent at a million rows.
    return torch.linalg.vector_norm(own, dim=1).square().sum() + cross.sum()


def _parts_at_owner(
    row_numbers: Tensor, gradient: Tensor, shard: Shard, group: Group
) -> tuple[Tensor, Tensor]:
    if group.num_workers == 1:
        return row_numbers, gradient
    owner = row_numbers // shard.physical_rows
    by_owner = owner.argsort(stable=True)
    send = torch.bincount(owner, minlength=group.num_workers)
    plan = stack_over_workers(send, group)
    to_each, from_each = plan[group.rank].tolist(), plan[:, group.rank].tolist()
    return (
        exchange_rows(row_numbers[by_owner], to_each, from_each, group),
        exchange_rows(gradient[by_owner], to_each, from_each, group),
    )

"""The norm of a step's whole gradient, dense part and tables together.

Several workers hold parts of one row's gradient. The norm of the parts is not the norm of their
sum, and would change with the number of workers. So each part goes to the row's owner, is summed
there, and the squares of the sums are added up: the norm that one process holding everything would
find (docs/decisions/0004-gradient-clipping.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import StepRows
from dist_embed.parallel.collectives import exchange_rows, stack_over_workers
from dist_embed.parallel.group import Group


def table_gradient_square_sum(rows: StepRows, lookup: ShardedTables) -> Tensor:
    """Sum of squares of the tables' gradients of the rows that this worker owns: scalar, float32.

    The leaves' gradients are W times a worker's part, as `StepRows.backward` expects, that of all
    own rows is the sum itself. Collective.
    """
    group = lookup.group
    total = torch.zeros((), device=group.device)
    plans = _exchange_plans(rows, lookup) if group.num_workers > 1 else {}
    for name, table in rows.tables.items():
        gradient = table.vectors.grad
        if gradient is None:
            gradient = torch.zeros_like(table.vectors)
        # One worker alone owns all, and each row once.
        touched, sums = table.rows, gradient
        if plans:
            touched, sums = _summed_at_owner(table.rows, gradient, *plans[name], group)
        total += _square_sum(touched - lookup.shards[name].first_row, sums, rows.own_gradient(name))
    return total


def _square_sum(touched: Tensor, sums: Tensor, own: Tensor | None) -> Tensor:
    """Of a shard's gradient: ``sums`` at the rows ``touched``, all different, and ``own`` [R, D],
    where it has one, at all.
    """
    if own is None:
        return sums.square().sum()
    # |own + sums|² without a copy of own: |own|² + sums · (sums + 2 own) on the touched rows.
    cross = sums * (sums + 2 * own[touched])
    # By rows: the norm of the whole, in float32 on the CPU, is off by a percent at a million rows.
    return torch.linalg.vector_norm(own, dim=1).square().sum() + cross.sum()


def _summed_at_owner(
    row_numbers: Tensor, gradient: Tensor, to_each: list[int], from_each: list[int], group: Group
) -> tuple[Tensor, Tensor]:
    """The distinct rows of this worker's shard that any worker wanted, and their gradients."""
    asked = exchange_rows(row_numbers, to_each, from_each, group)
    parts = exchange_rows(gradient, to_each, from_each, group)
    touched, place = asked.unique(return_inverse=True)
    sums = gradient.new_zeros((len(touched), gradient.shape[1]))
    # `alpha` takes three times as long.
    return touched, sums.index_add_(0, place, parts).div_(group.num_workers)


def _exchange_plans(
    rows: StepRows, lookup: ShardedTables
) -> dict[str, tuple[list[int], list[int]]]:
    """By table how many rows go to each worker and come from each. Collective.

    A worker's rows are ascending, so those of one owner lie together.
    """
    group, counts = lookup.group, []
    for name, table in rows.tables.items():
        owners = torch.arange(group.num_workers + 1, device=group.device)
        ends = torch.searchsorted(table.rows, owners * lookup.shards[name].physical_rows)
        counts.append(ends.diff())
    sent = stack_over_workers(torch.stack(counts), group).tolist()  # by sender, table, owner
    return {
        name: (sent[group.rank][number], [by_table[number][group.rank] for by_table in sent])
        for number, name in enumerate(rows.tables)
    }

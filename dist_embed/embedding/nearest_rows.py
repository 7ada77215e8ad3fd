"""The nearest rows of some rows of a table that is sharded over workers, by cosine, exactly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.parallel.collectives import stack_over_workers, sum_over_workers

BLOCK_BYTES = 16 * 2**20  # of rows that are looked at together


@torch.no_grad()
def nearest_rows(
    tables: ShardedTables, table: str, ids: Tensor, count: int, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """The ids with the highest cosine to each of ``ids``, but for itself, highest first.

    Every worker looks at the rows of its own shard, and all exchange the best of each.

    Args:
        tables: the tables.
        table: which of them.
        ids: [q] int64, the same on every worker.
        count: how many are looked for.
        allowed: [at most V] bool, which ids can be among them; later ones cannot.

    Returns:
        cosines [q, count], -inf where there are fewer, and ids [q, count]. The same on every
        worker.

    Collective.
    """
    group, own_ids = tables.group, tables.ids_of_own_rows(table)
    weight, width = tables.weight(table), tables.specs[table].width
    queries = torch.zeros(len(ids), width, device=group.device)
    for number, i in enumerate(ids.tolist()):
        queries[number] += weight[own_ids == i].float().sum(dim=0)  # of one worker's one row
    directions = functional.normalize(sum_over_workers(queries, group))
    asked, may_be = ids.to(group.device), allowed.to(group.device)
    best = torch.full((len(ids), count), float("-inf"), device=group.device)
    found = torch.zeros(len(ids), count, dtype=torch.int64, device=group.device)
    rows = max(1, BLOCK_BYTES // (4 * width))
    for rows_here, ids_here in zip(weight.split(rows), own_ids.split(rows), strict=True):
        inside = ids_here < len(may_be)
        inside[inside.clone()] = may_be[ids_here[inside]]
        vectors, those = rows_here[inside].float(), ids_here[inside]
        cosines = directions @ functional.normalize(vectors).T
        cosines[:, vectors.square().sum(dim=1) == 0] = float("-inf")
        cosines[asked[:, None] == those[None, :]] = float("-inf")
        best, found = _highest(
            torch.cat([best, cosines], dim=1),
            torch.cat([found, those.expand(len(ids), -1)], dim=1), count,
        )  # fmt: skip
    of_all = [stack_over_workers(part, group).transpose(0, 1).flatten(1) for part in (best, found)]
    return _highest(of_all[0], of_all[1], count)


def _highest(values: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, place = values.topk(count, dim=1)
    return values, ids.gather(1, place)

"""The nearest rows over workers against one process that holds the table."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.embedding import nearest_rows as module
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.nearest_rows import nearest_rows
from dist_embed.embedding.row_order import RowOrder
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool

WORDS = Table(31, 8)
ASKED, COUNT = [7, 20, 3], 6
# Hashed rows, and so many ids, are never among them; one row is zero.
ALLOWED, ZERO = torch.ones(28, dtype=torch.bool), 11
ALLOWED[[0, 1, 2, 5]] = False


def found_by(group: Group, count: int) -> Any:
    tables = ShardedTables({"word": WORDS}, group, seed=5)
    own = tables.ids_of_own_rows("word")
    tables.weight("word")[own == ZERO] = 0
    tables.after_writing()
    # Blocks of two rows, so that a shard has several.
    with mock.patch.object(module, "BLOCK_BYTES", 64):
        return nearest_rows(tables, "word", torch.tensor(ASKED), count, ALLOWED)


def reference(count: int) -> tuple[Tensor, Tensor]:
    rows = torch.empty(WORDS.rows, WORDS.width)
    fill_initial_rows(rows, seed=5, table="word", first_row=0, scale=WORDS.scale)
    tables = rows[RowOrder(WORDS.rows).rows_of(torch.arange(WORDS.rows))]  # in the order of ids
    tables[ZERO] = 0
    cosines = functional.normalize(tables[ASKED]) @ functional.normalize(tables).T
    cosines[:, len(ALLOWED) :] = float("-inf")
    cosines[:, : len(ALLOWED)][:, ~ALLOWED] = float("-inf")
    cosines[:, ZERO] = float("-inf")
    cosines[range(len(ASKED)), ASKED] = float("-inf")
    values, ids = cosines.topk(count, dim=1)
    return values, ids


@pytest.mark.parametrize("num_workers", [1, 3])
def test_all_workers_find_the_nearest_of_all_rows(workers: WorkerPool, num_workers: int) -> None:
    values, ids = reference(COUNT)
    for cosines, found in workers.run(num_workers, found_by, COUNT):
        torch.testing.assert_close(cosines, values)
        assert torch.equal(found, ids)


def test_where_there_are_fewer_the_rest_is_told(workers: WorkerPool) -> None:
    for cosines, _ in workers.run(2, found_by, 30):
        # 28 but for four, the zero and itself.
        assert torch.isfinite(cosines).sum(dim=1).tolist() == [22, 22, 22]

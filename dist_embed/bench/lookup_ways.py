"""Two ways to look up and update the rows of one table, ours and FBGEMM's, and their check."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from dist_embed.bench.lookup_cases import Case, Work
from dist_embed.embedding.own_rows import UPDATES, Constants
from dist_embed.embedding.settings import Weights
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import StepRows, WantedRows
from dist_embed.embedding.table import Table
from dist_embed.embedding.tables import OPTIMIZERS
from dist_embed.errors import RunFailed
from dist_embed.parallel.group import Group

_RATE, _EPS = 0.1, 1e-8
_BETA1, _BETA2 = 0.9, 0.999  # FBGEMM's
# Of the change of the rows. Those of fp16 are rounded.
_TOLERANCE: dict[Weights, float] = {"fp32": 1e-3, "fp16": 2e-2}
_ROWS_CHECKED = 32


class LookupWays:
    """A table with normal values, filled on the device, and the ways to train it.

    Args:
        case: the table.
        work: what is looked up.
        group: the one worker.

    Attributes:
        tables: ours.

    The constructor and the calls of ours are collective.
    """

    def __init__(self, case: Case, work: Work, group: Group) -> None:
        self._case = case
        # With one table there is one kernel, and nothing else in it.
        self.tables = ShardedTables(
            {"shared": Table(case.num_rows, work.width, initial_scale=0.0)}, group,
            optimizer=case.optimizer, learning_rate=_RATE, eps=_EPS, seed=1, memory=case.memory,
            weights=case.weights, step_bytes=work.beside_table_bytes(case),
        )  # fmt: skip
        self.tables.weight("shared").normal_()
        self.tables.after_writing()
        self._gradient = torch.randn(work.num_ids, work.width, device=group.device)
        self._offsets = torch.arange(work.num_ids + 1, device=group.device)
        (self._kernel,) = self.tables.kernels

    def wanted(self, ids: Tensor) -> WantedRows:
        """The distinct rows of a step's ids [N], on their device."""
        return self.tables.wanted({"shared": [ids]})

    def lookup(self, wanted: WantedRows) -> tuple[StepRows, Tensor]:
        """Ours, as in a step of training, and a vector for every id: [N, D]."""
        rows = self.tables.fetch(self.tables.request(wanted))
        return rows, rows.vectors("shared")

    def update(self, wanted: WantedRows, step: int = 2) -> None:
        """The same, and its backward; what a step sets beforehand is set too.

        In a first step FBGEMM's Adam asks the device how many there were.
        """
        self.tables.set_step(step)
        self.tables.set_learning_rate(_RATE)
        rows, vectors = self.lookup(wanted)
        vectors.backward(self._gradient)
        rows.backward(proven=True)

    def kernel_lookup(self, rows: Tensor) -> Tensor:
        """FBGEMM's, of the rows of all ids [N], each in a bag of its own: [N, D]."""
        # Not by calling the kernel: on the CPU its forward is ours (`CpuRows`).
        vectors: Tensor = SplitTableBatchedEmbeddingBagsCodegen.forward(
            self._kernel, rows, self._offsets
        )
        return vectors

    def kernel_update(self, rows: Tensor) -> None:
        """The same, and its backward."""
        self.kernel_lookup(rows).backward(self._gradient)

    def begin(self) -> None:
        """Bring the table up to date and empty its cache, where it has one."""
        self._kernel.flush()  # `before_reading` does not know of `kernel_update`
        self.tables.after_writing()

    def check(self, ids: Tensor) -> None:
        """Look up ``ids`` [N] and update their rows once in each way.

        Raises:
            RunFailed: vectors are not the table's rows; or updated rows are not what the
                optimizer's formula makes of them in float64, of the most frequent ones and some of
                all others.
        """
        rows, wanted = self.tables.orders["shared"].rows_of(ids), self.wanted(ids)
        with torch.no_grad():
            self._check_vectors("FBGEMM", self.kernel_lookup(rows), rows)
            self._check_vectors("dist_embed", self.lookup(wanted)[1], rows)
        checked, gradient = _sums_of_some(rows, self._gradient)
        self._check_update("FBGEMM", partial(self.kernel_update, rows), checked, gradient)
        self._check_update("dist_embed", partial(self.update, wanted, step=1), checked, gradient)

    def _check_vectors(self, by: str, vectors: Tensor, rows: Tensor) -> None:
        if not torch.equal(vectors, self.tables.weight("shared")[rows].float()):
            raise RunFailed(f"{self._case}: what {by} looks up is not what the table holds")

    def _check_update(
        self, by: str, update: Callable[[], None], checked: Tensor, gradient: Tensor
    ) -> None:
        """``gradient`` [n, D] is that of the rows ``checked`` [n]; their state is set to zeros."""
        before = self.tables.weight("shared")[checked].double()
        states = list(self.tables.optimizer_state("shared").values())
        for state in states:
            state[checked] = 0
        expected = before.clone()
        UPDATES[OPTIMIZERS[self._case.optimizer]](
            expected, [state[checked].double() for state in states], gradient,
            Constants(_RATE, _EPS, _BETA1, _BETA2, 1),
        )  # fmt: skip
        self.tables.set_step(1)  # or the kernel's Adam has counted the lookups
        update()
        self.begin()
        off = self.tables.weight("shared")[checked].double() - expected
        error = float(off.norm() / (expected - before).norm())
        allowed = _TOLERANCE[self._case.weights]
        if not error <= allowed:
            raise RunFailed(
                f"{self._case}: the change of rows by {by} is off by {error:.1e} of what the "
                f"optimizer's formula gives; allowed is {allowed:g}"
            )


def _sums_of_some(rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the distinct ``rows`` [N], among them the most frequent, and the sum of each one's
    ``gradient`` [N, D], float64.
    """
    distinct, place, counts = rows.unique(return_inverse=True, return_counts=True)
    apart = -(-len(distinct) // _ROWS_CHECKED)
    some = torch.arange(0, len(distinct), apart, device=rows.device)
    frequent = counts.topk(min(_ROWS_CHECKED, len(counts))).indices
    chosen = torch.cat([frequent, some]).unique()
    into = torch.full_like(distinct, -1)
    into[chosen] = torch.arange(len(chosen), device=rows.device)
    into = into[place]
    kept = into >= 0
    sums = gradient.new_zeros(len(chosen), gradient.shape[1], dtype=torch.float64)
    return distinct[chosen], sums.index_add_(0, into[kept], gradient[kept].double())

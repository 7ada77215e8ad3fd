from __future__ import annotations

import pytest
import torch

from tests.distributed.own_rows_case import trained_twice
from tests.distributed.pool import WorkerPool


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_a_table_trained_whole_is_as_if_all_rows_were_looked_up(
    workers: WorkerPool, num_workers: int, optimizer: str
) -> None:
    for before, whole, looked_up in workers.run(num_workers, trained_twice, optimizer):
        assert whole.keys() == looked_up.keys() == before.keys()
        for name, value in whole.items():
            torch.testing.assert_close(value, looked_up[name], rtol=0, atol=5e-6)
            assert not torch.equal(value, before[name])

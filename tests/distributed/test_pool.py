"""What the pool's workers answer arrives as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_embed.parallel.group import Group
from tests.distributed.pool import RemoteError, WorkerPool

TENSORS = [
    torch.tensor(1.5), torch.empty(0, 4), torch.arange(6).view(2, 3).t(), torch.arange(9)[2:7:2],
    torch.tensor([True, False]), torch.randn(5, 3).bfloat16(), torch.randn(4, dtype=torch.float64),
    torch.randn(4, requires_grad=True),
]  # fmt: skip


def same(group: Group, value: Any) -> Any:
    return value


def test_tensors_go_and_come_back_as_they_were(workers: WorkerPool) -> None:
    for found in workers.run(2, same, TENSORS):
        for back, tensor in zip(found, TENSORS, strict=True):
            torch.testing.assert_close(back, tensor, rtol=0, atol=0)
            assert back.requires_grad == tensor.requires_grad
            back.detach().zero_()  # they can be written to


def function_of_its_own(group: Group) -> Any:
    return lambda: group.rank


def test_an_answer_that_cannot_be_sent_is_told_at_once(workers: WorkerPool) -> None:
    with pytest.raises(RemoteError, match=r"worker 0:(.|\n)*function_of_its_own"):
        workers.run(1, function_of_its_own)
    assert workers.run(1, same, 7) == [7]

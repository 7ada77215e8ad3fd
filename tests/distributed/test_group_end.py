from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from dist_embed.cluster.local import launch_local
from dist_embed.errors import UserError
from dist_embed.parallel.group import joined_group


def outlive(emit: Any) -> int:
    """Leave the group with the model that used it last still alive."""
    with joined_group("cpu", 60.0) as group:
        model = DistributedDataParallel(
            torch.nn.Linear(300, 300), process_group=group.process_group
        )
        for _ in range(3):
            model(torch.randn(2, 300)).sum().backward()
    return group.num_workers


@pytest.mark.heavy  # without what `joined_group` does at its end, one in some ten starts hangs
def test_a_model_that_outlives_its_group_does_not_hang(tmp_path: Any) -> None:
    for _ in range(30):
        assert (
            launch_local(outlive, (), num_workers=2, on_event=print, log_folder=str(tmp_path)) == 2
        )


@pytest.mark.parametrize("wrong", ["gpu", "cuda:0", 0, None])
def test_a_device_that_is_none_is_refused(wrong: Any) -> None:
    said = "device_type: .* is not allowed: one of auto, cpu, cuda"
    with pytest.raises(UserError, match=said), joined_group(wrong):
        pass

"""The stored checkpoints of earlier formats load for ever.

After a change of the format, write one of the new format beside the old ones, which stay:
``python -m tests.distributed.test_old_checkpoint FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint.catalogue import current_names, open_checkpoints, read_manifest
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.embedding.plan import shard_of
from dist_embed.embedding.row_order import RowOrder
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.distributed.savers import saver_of

STORED = Path(__file__).parent / "old_checkpoints"
ROWS, WIDTH, STEP = 7, 4, 120
SCALARS = {"position": {"epoch": 2, "pool": 1, "batch": 5}, "skipped_steps": 1,
           "validation_loss": 1.25}  # fmt: skip


def expected_state(group: Group) -> TrainingState:
    """Values that a formula gives, so that nothing but this file says what was saved."""
    shard = shard_of(ROWS, group.rank, group.num_workers)
    rows = torch.arange(shard.first_row, shard.end_row, dtype=torch.float32)
    weight = rows[:, None] + torch.arange(WIDTH) / 8
    return TrainingState(
        group=group,
        step=STEP,
        tensors={
            "table.shared.weight": LiveTensor(weight, shard.first_row, ROWS, replicated=False),
            "table.shared.momentum1": LiveTensor(rows / 16, shard.first_row, ROWS, False),
            "model.layer.weight": LiveTensor.whole(torch.arange(6.0).view(2, 3)),
            "model.layer.half": LiveTensor.whole(torch.tensor([0.5, -2.0], dtype=torch.bfloat16)),
            "optimizer.layer.weight.step": LiveTensor.whole(torch.tensor(120.0)),
        },
        row_multipliers={"shared": RowOrder(ROWS).multiplier},
        scalars=dict(SCALARS),
        fingerprint="0" * 64,
    )


def save(group: Group, uri: str) -> None:
    saver = saver_of(group, uri, [])
    saver.save(expected_state(group))
    saver.wait()


def load(group: Group, uri: str) -> list[str]:
    state, expected = expected_state(group), expected_state(group)
    for tensor in state.tensors.values():
        tensor.data.fill_(99)
    state.step, state.scalars = 0, {}
    load_newest(open_checkpoints(uri), state, print)
    assert (state.step, state.scalars) == (STEP, SCALARS)
    for name, tensor in expected.tensors.items():
        assert torch.equal(state.tensors[name].data, tensor.data), name
    return list(expected.tensors)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("folder", sorted(STORED.iterdir()), ids=lambda path: path.name)
def test_a_stored_checkpoint_loads(workers: WorkerPool, folder: Path, num_workers: int) -> None:
    workers.run(num_workers, load, str(folder))
    store = open_checkpoints(str(folder))
    manifest = read_manifest(store, current_names(store)[-1])
    assert manifest.num_workers == 2
    CheckpointReader(store, manifest).verify()


def test_there_is_one_of_the_present_format() -> None:
    assert {"format-2"} <= {path.name for path in STORED.iterdir()}


def main(arguments: Any) -> None:
    pool = WorkerPool()
    pool.run(2, save, arguments[0])
    pool.close()


if __name__ == "__main__":
    main(sys.argv[1:])

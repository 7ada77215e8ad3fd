"""Where a GPU's host would wait for the device in a training step."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchrec
from torch import Tensor

from dist_embed.bench.host_waits import told_waits
from dist_embed.parallel.collectives import sum_numbers_over_workers
from dist_embed.parallel.group import Group
from tests.distributed.host_waits import host_waits
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Sharded, Tiny, random_pairs

ON_THE_CPU_ALONE = ("dist_embed/embedding/cpu_rows.py:", "dist_embed/model/loss_inputs.py:")
ONCE = {"dist_embed/training/step.py:run": 1}
# Several workers bring the parts of a row's gradient together for its norm; two tables here.
FOR_THE_NORM = {
    "dist_embed/optim/gradient_norm.py:_exchange_plans": 1,
    "dist_embed/optim/gradient_norm.py:_summed_at_owner": 2,
}


def waits_of_a_step(group: Group, tiny: Tiny) -> dict[str, int]:
    """By place in our code; what runs on the CPU alone is left out."""
    sharded = Sharded(tiny, group)
    step = sharded.train_step
    step._optimizer = torch.optim.AdamW(sharded.transformer.parameters(), fused=True)  # as runs do
    works = [sharded.work(random_pairs(40, seed, 31, 31)) for seed in range(3)]
    prepared = [step.prepare(number, work) for number, work in enumerate(works, start=1)]
    step.run(1, prepared[0], prepared[1])
    with host_waits() as found:
        step.run(2, prepared[1], prepared[2])
    return {
        place: count
        for place, count in found.items()
        if place.startswith("dist_embed/") and not place.startswith(ON_THE_CPU_ALONE)
    }


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize(
    ("num_samples", "block_bytes", "batch_negatives"),
    [(9, 620, False), (9, 620, True), (0, 620, False), (0, 2**20, False)],
)
def test_a_step_waits_for_the_device_once(
    workers: WorkerPool, num_workers: int, clip_norm: float, num_samples: int, block_bytes: int,
    batch_negatives: bool,
) -> None:  # fmt: skip
    """With the sampled layer, and with the exact one by tiles and by blocks."""
    tiny = Tiny(
        accumulate=2, source_rows=31, clip_norm=clip_norm, num_samples=num_samples,
        block_bytes=block_bytes, batch_negatives=batch_negatives,
    )  # fmt: skip
    allowed = ONCE | (FOR_THE_NORM if clip_norm and num_workers > 1 else {})
    for found in workers.run(num_workers, waits_of_a_step, tiny):
        assert found == allowed


def test_one_worker_asks_no_device_between_two_steps() -> None:
    alone = Group(0, 1, 1, torch.device("meta"), None)  # type: ignore[arg-type]
    assert sum_numbers_over_workers([True, False], alone) == [1, 0]


@pytest.mark.parametrize(
    "asks",
    [lambda x: float(x.sum()), lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.cpu(),
     lambda x: bool(x.any()), lambda x: x.nonzero(), lambda x: x.unique(), lambda x: x[x > 0],
     lambda x: x.masked_select(x > 0), lambda x: x.__setitem__(x > 0, 1), lambda x: x.bincount(),
     lambda x: torch.equal(x, x), lambda x: x.repeat_interleave(x), lambda x: x.numpy()],
)  # fmt: skip
def test_whatever_asks_the_device_is_counted(asks: Callable[[Tensor], Any]) -> None:
    with host_waits() as found:
        asks(torch.tensor([0, 1, 2]))
    assert found == Counter({"elsewhere": 1})


def test_what_waits_for_nothing_is_not_counted() -> None:
    values, index = torch.arange(3.0), torch.tensor([2, 0])
    with host_waits() as found:
        values[index] = values[index] + values.gather(0, index).where(index > 0, 0.0)
        values.scatter_add_(0, index, torch.ones(2)).sort()
    assert not found


def test_what_a_gpu_tells_is_told_by_who_called() -> None:
    """Though it is PyTorch's own files that warn."""

    def function_of(path: str, **names: Any) -> Any:
        exec(compile("def asks(): return f()", path, "exec"), names)
        return names["asks"]

    def warn() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("anything else", stacklevel=1)

    package = str(Path(torchrec.__file__).parent)
    asks = function_of(f"{package}/a.py", f=function_of("/torch/b.py", f=warn))
    with told_waits() as found:
        asks()
        asks()
        warn()
    assert found == {"torchrec/a.py:asks": 2, "elsewhere": 1}

"""Tables that stay frozen or have rates of their own."""

from __future__ import annotations

import math

import pytest
import torch

from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Sharded, Tiny, random_pairs

PAIRS = random_pairs(12, 3, 23, 31)
Tables = dict[str, tuple[torch.Tensor, ...]]


def tables_after(group: Group, tiny: Tiny, steps: int) -> list[Tables]:
    """Rows and optimizer state of this worker's shards, at the start and after each step."""
    model = Sharded(tiny, group)

    def now() -> Tables:
        return {
            name: (weight.clone(), *(value.clone() for value in state.values()))
            for name, (_, weight, state) in model.tables().items()
        }

    found = [now()]
    for step in range(1, steps + 1):
        result = model.step(step, PAIRS)
        assert math.isfinite(result.loss)
        assert not result.skipped
        found.append(now())
    return found


def same(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("num_samples", [0, 9])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
@pytest.mark.parametrize(
    "frozen", [{"source": math.inf}, {"target": 1.0}, {"output": 2.0, "source": 1.0},
               {"source": 3.0, "target": 3.0, "output": 3.0}],
)  # fmt: skip
def test_a_frozen_table_stays_as_it_is_for_so_long_and_others_train(
    workers: WorkerPool, num_workers: int, num_samples: int, clip_norm: float,
    frozen: dict[str, float],
) -> None:  # fmt: skip
    tiny = Tiny(share="none", num_samples=num_samples, clip_norm=clip_norm,
                frozen_until=tuple(frozen.items()))  # fmt: skip
    for history in workers.run(num_workers, tables_after, tiny, 3):
        for step in range(1, 4):
            for name in history[0]:
                stays = step <= frozen.get(name, 0)
                assert same(history[step - 1][name], history[step][name]) == stays, (name, step)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_so_it_does_with_the_other_optimizers(workers: WorkerPool, optimizer: str) -> None:
    tiny = Tiny(share="none", optimizer=optimizer, frozen_until=(("source", 2.0),))
    for history in workers.run(2, tables_after, tiny, 3):
        assert len(history[0]["source"]) == (1 if optimizer == "sgd" else 2)
        for step in range(1, 4):
            for name in history[0]:
                stays = name == "source" and step <= 2
                assert same(history[step - 1][name], history[step][name]) == stays, (name, step)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("num_samples", [0, 9])
def test_a_tables_own_rate_is_its_alone(
    workers: WorkerPool, num_workers: int, num_samples: int
) -> None:
    def start(rates: dict[str, float]) -> list[Tables]:
        tiny = Tiny(share="none", num_samples=num_samples, own_rates=tuple(rates.items()))
        return [history[1] for history in workers.run(num_workers, tables_after, tiny, 1)]

    usual = start({})
    every = start({"source": 0.02, "target": 0.02, "output": 0.02})
    one = start({"source": 0.02})
    for rank in range(num_workers):
        # After one step from the same start a table's rows depend on its own rate only.
        assert same(one[rank]["source"], every[rank]["source"])
        assert not same(one[rank]["source"], usual[rank]["source"])
        for name in ("target", "output"):
            assert same(one[rank][name], usual[rank][name])

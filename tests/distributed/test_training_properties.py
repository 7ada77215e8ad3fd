"""What must hold for any number of workers, without a reference."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Pairs, Sharded, Tiny, random_pairs

STEPS = 20


def losses_of_run(group: Group, tiny: Tiny, steps: list[Pairs]) -> tuple[list[float], Any]:
    sharded = Sharded(tiny, group)
    losses = [sharded.step(number, pairs).loss for number, pairs in enumerate(steps, start=1)]
    return losses, sharded.tables()


def many_steps() -> list[Pairs]:
    return [random_pairs(7, seed, 23, 31) for seed in range(STEPS)]


def test_twenty_steps_do_not_depend_on_the_number_of_workers(workers: WorkerPool) -> None:
    runs = {w: workers.run(w, losses_of_run, Tiny(), many_steps())[0][0] for w in (1, 2, 3)}
    assert runs[1][-1] < runs[1][0]
    assert runs[2] == pytest.approx(runs[1], rel=1e-3)
    assert runs[3] == pytest.approx(runs[1], rel=1e-3)


def test_two_equal_runs_are_equal_bit_for_bit(workers: WorkerPool) -> None:
    first = workers.run(2, losses_of_run, Tiny(clip_norm=0.5), many_steps())
    second = workers.run(2, losses_of_run, Tiny(clip_norm=0.5), many_steps())
    assert first[0][0] == second[0][0]
    for rank in (0, 1):
        for name, (_, weight, state) in first[rank][1].items():
            assert torch.equal(weight, second[rank][1][name][1])
            for key, value in state.items():
                assert torch.equal(value, second[rank][1][name][2][key])


def tensors_held(group: Group, tiny: Tiny, fail: bool) -> list[Counter[str]]:
    """What this process holds after some steps, and after some more, whose last backward may
    ``fail``: how many of each type and number of dimensions.
    """
    sharded = Sharded(tiny, group)
    pairs = random_pairs(7, 1, 23, 31)
    if fail:

        def broken(gradient: torch.Tensor) -> None:
            raise RuntimeError("broken")

        next(sharded.transformer.parameters()).register_hook(broken)
    held = []
    for first in (1, 6):
        for number in range(first, first + 5):
            with pytest.raises(RuntimeError, match="broken") if fail else nullcontext():
                sharded.step(number, pairs)
        held.append(tensors_here())
    return held


def tensors_here() -> Counter[str]:
    """All of this process, once two looks agree: gloo's threads let go of what they have sent a
    moment after it is waited for.
    """
    found, before = Counter[str](), None
    while found != before:
        before = found
        time.sleep(0.1)
        gc.collect()
        found = Counter(
            f"{one.dtype}, {one.ndim}-D"
            for one in gc.get_objects()
            if isinstance(one, torch.Tensor)
        )
    return found


@pytest.mark.parametrize(("num_samples", "batch_negatives"), [(0, False), (9, False), (9, True)])
@pytest.mark.parametrize(("num_workers", "fail"), [(1, False), (2, False), (1, True)])
def test_a_step_leaves_nothing_behind(
    workers: WorkerPool, num_workers: int, fail: bool, num_samples: int, batch_negatives: bool
) -> None:
    """A ring through PyTorch's C++, which Python's collector does not see, would stay for ever."""
    tiny = Tiny(
        num_samples=num_samples, batch_negatives=batch_negatives, accumulate=1 if fail else 2,
        clip_norm=0.3,
    )  # fmt: skip
    for after_some, after_more in workers.run(num_workers, tensors_held, tiny, fail):
        assert sum(after_some.values()) > 100
        assert (after_more - after_some, after_some - after_more) == ({}, {})


def losses_in(group: Group, dtype: torch.dtype, steps: list[Pairs]) -> list[float]:
    sharded = Sharded(Tiny(), group, dtype)
    return [sharded.step(number, pairs).loss for number, pairs in enumerate(steps, start=1)]


def test_bfloat16_steps_come_close_to_float32(workers: WorkerPool) -> None:
    steps = [random_pairs(30, seed, 23, 31) for seed in range(5)]
    exact, rounded = (
        workers.run(2, losses_in, dtype, steps)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded == pytest.approx(exact, rel=2e-2)
    assert rounded != exact


def gradient_norms(group: Group, tiny: Tiny, steps: list[Pairs]) -> list[float | None]:
    sharded = Sharded(tiny, group)
    return [sharded.step(n, pairs).gradient_norm for n, pairs in enumerate(steps, start=1)]


def test_the_clipping_norm_does_not_depend_on_the_number_of_workers(workers: WorkerPool) -> None:
    tiny = Tiny(share="all", source_rows=31, clip_norm=0.1)
    steps = [random_pairs(9, seed, 31, 31) for seed in range(4)]
    alone = workers.run(1, gradient_norms, tiny, steps)[0]
    assert all(norm is not None and norm > 0.1 for norm in alone)
    for num_workers in (2, 4):
        for norms in workers.run(num_workers, gradient_norms, tiny, steps):
            assert norms == pytest.approx(alone, rel=1e-5)


def poisoned_step(group: Group, tiny: Tiny, pairs: Pairs, poison: str) -> dict[str, Any]:
    sharded = Sharded(tiny, group)
    sharded.step(1, pairs, pairs)
    before = (sharded.tables(), sharded.dense())
    # Only the last worker is poisoned: the others must hear of it.
    if poison == "gradient" and group.rank == group.num_workers - 1:
        parameter = next(iter(sharded.transformer.parameters()))
        handle = parameter.register_hook(lambda grad: grad * float("nan"))
    elif poison == "rows" and group.rank == group.num_workers - 1:
        weight = sharded.lookup.weight(sharded.output_table)
        saved = weight[0].clone()
        weight[0] = float("inf")
    result = sharded.step(2, pairs, pairs)
    if poison == "gradient" and group.rank == group.num_workers - 1:
        handle.remove()
    elif poison == "rows" and group.rank == group.num_workers - 1:
        weight[0] = saved
    after = (sharded.tables(), sharded.dense())
    tables_same = all(
        torch.equal(before[0][t][1], after[0][t][1])
        and all(torch.equal(v, after[0][t][2][k]) for k, v in before[0][t][2].items())
        for t in before[0]
    )
    dense_same = all(torch.equal(v, after[1][k]) for k, v in before[1].items())
    good = sharded.step(3, pairs)
    return {
        "skipped": result.skipped, "tables": tables_same, "dense": dense_same,
        "next_skipped": good.skipped, "next_loss": good.loss,
    }  # fmt: skip


@pytest.mark.parametrize(("poison", "num_samples"), [("gradient", 0), ("rows", 0), ("gradient", 9)])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_that_is_not_finite_changes_nothing(
    workers: WorkerPool, poison: str, num_samples: int, clip_norm: float
) -> None:
    pairs = random_pairs(6, 1, 23, 31)
    tiny = Tiny(clip_norm=clip_norm, num_samples=num_samples)
    for told in workers.run(3, poisoned_step, tiny, pairs, poison):
        assert told["skipped"]
        assert told["tables"]
        assert told["dense"]
        assert not told["next_skipped"]
        assert math.isfinite(told["next_loss"])


def draws(group: Group, steps: list[int], seed: int) -> list[list[float]]:
    """What dropout would draw first in each of the steps."""
    sharded = Sharded(Tiny(step_seed=seed), group)
    found: list[list[float]] = []
    sharded.transformer.register_forward_pre_hook(
        lambda *_: found.append(torch.rand(3).tolist())  # of the generator that dropout draws from
    )
    for step in steps:
        sharded.step(step, random_pairs(4, 1, 23, 31))
    return found


def test_dropout_differs_by_worker_and_step_and_seed_and_is_repeated(workers: WorkerPool) -> None:
    first = workers.run(2, draws, [1, 2, 3], 5)
    other = workers.run(2, draws, [1, 2, 3], 6)
    everything = [tuple(one) for worker in (*first, *other) for one in worker]
    assert len(set(everything)) == len(everything) == 12
    # A run that resumes behind step 1 draws as one that was never interrupted.
    assert workers.run(2, draws, [2, 3], 5) == [worker[1:] for worker in first]


def requests(group: Group, announced: list[int]) -> int:
    """How often rows are asked for in four steps, some of which are announced by the one before."""
    sharded, count = Sharded(Tiny(), group), 0
    request = sharded.lookup.request

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return request(*args, **options)

    sharded.lookup.request = counted  # type: ignore[method-assign]
    steps = [random_pairs(4, seed, 23, 31) for seed in range(5)]
    for number in range(1, 5):
        following = steps[number] if number + 1 in announced else None
        sharded.step(number, steps[number - 1], following)
    return count


@pytest.mark.parametrize("announced", [[], [2, 4], [2, 3, 4]])
def test_rows_of_an_announced_step_are_asked_for_once(
    workers: WorkerPool, announced: list[int]
) -> None:
    assert workers.run(2, requests, announced) == [4, 4]

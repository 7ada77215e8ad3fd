"""`OwnRowsKernel` against FBGEMM's kernels with every row looked up, and against PyTorch's Adam."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from dist_embed.embedding import own_rows
from dist_embed.embedding.own_rows import (
    UPDATES,
    Constants,
    OwnGradient,
    OwnRowsKernel,
    round_stochastically,
)
from dist_embed.embedding.tables import OPTIMIZERS

ROWS, WIDTH = 11, 8
ALL = torch.arange(ROWS)
# What is looked up by id in each step beside the shard as a whole: repeated rows, or none.
LOOKED_UP = [[1, 5, 5, 10], [], [0, 0, 0]]


class AdamKernel:
    """What `OwnRowsKernel` uses of a kernel with Adam, which FBGEMM has on CUDA only."""

    optimizer = EmbOptimType.ADAM
    optimizer_args = SimpleNamespace(eps=1e-3, beta1=0.8, beta2=0.95)

    def __init__(self, weights: SparseType) -> None:
        self._weight = torch.empty(ROWS, WIDTH, dtype=weights.as_dtype())
        self._states = [torch.zeros(ROWS * WIDTH), torch.zeros(ROWS * WIDTH)]
        self.set_learning_rate(0.3)

    def split_embedding_weights(self) -> list[Tensor]:
        return [self._weight]

    def split_optimizer_states(self) -> list[list[Tensor]]:
        return [self._states]

    def set_learning_rate(self, rate: float) -> None:
        self.get_learning_rate = lambda: rate


def build_kernel(optimizer: EmbOptimType, weights: SparseType = SparseType.FP32) -> Any:
    adam = optimizer == EmbOptimType.ADAM
    kernel: Any = AdamKernel(weights) if adam else SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)], optimizer=optimizer,
        learning_rate=0.3, eps=1e-3, pooling_mode=PoolingMode.NONE, weights_precision=weights,
        beta1=0.8, beta2=0.95,
    )  # fmt: skip
    (weight,) = kernel.split_embedding_weights()
    weight.normal_(generator=torch.Generator().manual_seed(3))
    return kernel


def gradient_of(step: int, rows: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(step))


def train(own: OwnRowsKernel, step: int, looked_up: list[int], backward: bool = True) -> None:
    """A step: the shard's gradient in two parts, and that of rows that were looked up."""
    own.step = step
    own._kernel.set_learning_rate(0.3 / step)
    begun = own.begin_step(trained=True)
    rows = own(torch.tensor(looked_up, dtype=torch.int64), torch.empty(0))
    assert begun.gradient is not None
    begun.gradient.begin_adding(torch.full((WIDTH,), 0.5)).add_(gradient_of(step, ROWS))
    begun.gradient.begin_adding(torch.full((WIDTH,), -0.25)).mul_(1)
    if backward:
        rows.backward(gradient_of(100 + step, len(looked_up)))


def whole_gradient(step: int, looked_up: list[int]) -> Tensor:
    given = torch.tensor(looked_up, dtype=torch.int64)
    return (gradient_of(step, ROWS) + 0.25).index_add(0, given, gradient_of(100 + step, len(given)))


def values_of(kernel: Any) -> list[Tensor]:
    stateless = kernel.optimizer == EmbOptimType.EXACT_SGD
    (states,) = [[]] if stateless else kernel.split_optimizer_states()
    return [value.clone() for value in (*kernel.split_embedding_weights(), *states)]


@pytest.mark.parametrize("part_rows", [1, 4, ROWS])
@pytest.mark.parametrize("optimizer", [kind for kind in UPDATES if kind != EmbOptimType.ADAM])
def test_a_step_is_that_of_fbgemm_with_every_row(
    monkeypatch: pytest.MonkeyPatch, optimizer: EmbOptimType, part_rows: int
) -> None:
    monkeypatch.setitem(own_rows.PART_BYTES, "cpu", part_rows * 4 * WIDTH)
    theirs, ours = build_kernel(optimizer), build_kernel(optimizer)
    own = OwnRowsKernel(ours, ROWS)
    for step, looked_up in enumerate(LOOKED_UP, start=1):
        theirs.set_learning_rate(0.3 / step)
        rows = theirs(indices=ALL, offsets=torch.arange(ROWS + 1))
        rows.backward(whole_gradient(step, looked_up))
        train(own, step, looked_up)
        for our, their in zip(values_of(ours), values_of(theirs), strict=True):
            torch.testing.assert_close(our, their)


def test_adam_is_pytorchs() -> None:
    kernel = build_kernel(EmbOptimType.ADAM)
    parameter = kernel.split_embedding_weights()[0].clone().requires_grad_()
    adam = torch.optim.Adam([parameter], betas=(0.8, 0.95), eps=1e-3)
    own = OwnRowsKernel(kernel, ROWS)
    for step, looked_up in enumerate(LOOKED_UP, start=1):
        adam.param_groups[0]["lr"] = 0.3 / step
        parameter.grad = whole_gradient(step, looked_up)
        adam.step()
        train(own, step, looked_up)
    weight, mean, square = values_of(kernel)
    torch.testing.assert_close(weight, parameter.detach())
    torch.testing.assert_close(mean.view(ROWS, WIDTH), adam.state[parameter]["exp_avg"])
    torch.testing.assert_close(square.view(ROWS, WIDTH), adam.state[parameter]["exp_avg_sq"])


def test_a_step_of_adam_counts_from_one() -> None:
    parameter = torch.randn(ROWS, WIDTH).requires_grad_()
    weight = parameter.detach().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    for step in (1, 2, 3):
        parameter.grad = gradient_of(step, ROWS)
        adam.step()
        constants = Constants(0.1, 1e-3, 0.8, 0.95, step)
        UPDATES[EmbOptimType.ADAM](weight, [mean, square], gradient_of(step, ROWS), constants)
        torch.testing.assert_close(weight, parameter.detach())
    torch.testing.assert_close(mean, adam.state[parameter]["exp_avg"])
    torch.testing.assert_close(square, adam.state[parameter]["exp_avg_sq"])


def test_every_optimizer_is_there() -> None:
    assert set(UPDATES) == set(OPTIMIZERS.values())


@pytest.mark.parametrize("optimizer", UPDATES)
def test_padding_stays_as_it_is(optimizer: EmbOptimType) -> None:
    kernel = build_kernel(optimizer)
    before = values_of(kernel)
    own = OwnRowsKernel(kernel, ROWS - 2)
    begun = own.begin_step(trained=True)
    assert begun.weight.shape == (ROWS - 2, WIDTH)
    assert begun.gradient is not None
    begun.gradient.begin_adding(torch.ones(WIDTH))
    own(torch.tensor([3]), torch.empty(0)).backward(torch.ones(1, WIDTH))
    for value, old in zip(values_of(kernel), before, strict=True):
        flat, old = value.view(ROWS, -1), old.view(ROWS, -1)
        assert (flat[: ROWS - 2] != old[: ROWS - 2]).any(1).all()
        assert torch.equal(flat[ROWS - 2 :], old[ROWS - 2 :])


@pytest.mark.parametrize("optimizer", UPDATES)
def test_a_frozen_table_and_a_dropped_step_leave_no_trace(optimizer: EmbOptimType) -> None:
    kernel, expected = build_kernel(optimizer), build_kernel(optimizer)
    own, other = OwnRowsKernel(kernel, ROWS), OwnRowsKernel(expected, ROWS)
    train(own, 1, [4], backward=False)
    assert all(map(torch.equal, values_of(kernel), values_of(expected)))
    begun = own.begin_step(trained=False)
    assert begun.gradient is None
    own(torch.tensor([2]), torch.empty(0)).backward(torch.zeros(1, WIDTH))
    assert all(map(torch.equal, values_of(kernel), values_of(expected)))
    train(own, 2, [7, 7])
    train(other, 2, [7, 7])
    assert all(map(torch.equal, values_of(kernel), values_of(expected)))
    assert not torch.equal(values_of(kernel)[0], values_of(build_kernel(optimizer))[0])


@pytest.mark.parametrize("optimizer", UPDATES)
def test_narrow_rows_are_read_in_float32_and_rounded_when_written(optimizer: EmbOptimType) -> None:
    narrow, wide = build_kernel(optimizer, SparseType.FP16), build_kernel(optimizer)
    (start,) = narrow.split_embedding_weights()
    wide.split_embedding_weights()[0].copy_(start)
    own, other = OwnRowsKernel(narrow, ROWS), OwnRowsKernel(wide, ROWS)
    assert own(ALL, torch.empty(0)).dtype == torch.float32
    for step, looked_up in enumerate(LOOKED_UP, start=1):
        train(own, step, looked_up)
        train(other, step, looked_up)
    (weight, *states), (expected, *expected_states) = values_of(narrow), values_of(wide)
    assert weight.dtype == torch.float16
    # Values below 4 are at most 2^-9 apart; each of three updates rounds up or down once.
    assert expected.abs().max() < 4
    torch.testing.assert_close(weight.float(), expected, rtol=0, atol=3 * 2**-9)
    for state, their in zip(states, expected_states, strict=True):
        assert torch.equal(state, their)


def test_rounding_is_unbiased_and_to_a_neighbour() -> None:
    values = torch.full((200_000,), 1 + 2**-10 * 0.3)
    torch.manual_seed(1)
    rounded = round_stochastically(values)
    assert rounded.dtype == torch.float16
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-10}
    # 200,000 draws: the standard deviation of the share is 0.001.
    assert (rounded > 1).double().mean().item() == pytest.approx(0.3, abs=0.006)
    assert torch.equal(round_stochastically(-rounded.float()), -rounded)
    special = torch.tensor([0.0, float("inf"), float("-inf"), float("nan")])
    assert round_stochastically(special).nan_to_num(7, 8, 9).tolist() == [0, 8, 9, 7]
    # CUDA's own NaN has all bits: adding to them must not make a number of it.
    bits = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32)
    assert round_stochastically(bits.view(torch.float32).repeat(100)).isnan().all()
    large = torch.tensor([65_510.0, -65_510.0]).repeat(100)
    assert set(round_stochastically(large).tolist()) == {65_504.0, -65_504.0}


def test_rows_of_float16_are_rounded_stochastically() -> None:
    """Steps of a quarter of the distance of neighbours: to nearest, no row would ever move."""
    kernel = build_kernel(EmbOptimType.EXACT_SGD, SparseType.FP16)
    kernel.split_embedding_weights()[0].fill_(1.0)
    kernel.set_learning_rate(1.0)
    own = OwnRowsKernel(kernel, ROWS)
    for seed in range(64):
        torch.manual_seed(seed)
        gradient = own.begin_step(trained=True).gradient
        assert gradient is not None
        gradient.begin_adding(torch.full((WIDTH,), 2**-13))
        own(torch.tensor([], dtype=torch.int64), torch.empty(0)).sum().backward()
    moved = 1 - kernel.split_embedding_weights()[0].double().mean().item()
    # 64 steps of 88 values: the standard deviation of the mean is 3 % of it.
    assert moved == pytest.approx(64 * 2**-13, rel=0.1)


def test_a_gradient_that_nothing_was_added_to_is_zero() -> None:
    gradient = OwnGradient(torch.full((3, 2), float("nan")))
    assert not gradient.summed().any()
    assert gradient.begin_adding(torch.tensor([1.0, 2.0])).tolist() == [[1, 2]] * 3
    assert gradient.begin_adding().tolist() == [[1, 2]] * 3
    assert OwnGradient(torch.full((1, 1), float("nan"))).begin_adding().tolist() == [[0]]


def test_only_rows_that_were_fetched_last_can_be_updated() -> None:
    own = OwnRowsKernel(build_kernel(EmbOptimType.EXACT_SGD), ROWS)
    own.begin_step(trained=True)
    rows = own(torch.tensor([1]), torch.empty(0))
    own.begin_step(trained=True)
    with pytest.raises(RuntimeError, match="fetched for training again"):
        rows.sum().backward()


def test_a_row_outside_the_shard_is_named() -> None:
    own = OwnRowsKernel(build_kernel(EmbOptimType.EXACT_SGD), ROWS - 1)
    with pytest.raises(IndexError, match=r"output layer's table: row 10 .* 0 to 9"):
        own(torch.tensor([3, ROWS - 1]), torch.empty(0))

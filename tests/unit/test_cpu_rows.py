"""`CpuRows` against the kernels of FBGEMM whose place it takes."""

from __future__ import annotations

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from dist_embed.config.cuda_only import problems_without_cuda
from dist_embed.embedding.cpu_rows import UPDATES, CpuRows
from dist_embed.embedding.tables import OPTIMIZERS

ROWS, WIDTH = [11, 7], 8
TABLE_OF_FEATURE = [0, 0, 1]


def build_kernel(optimizer: EmbOptimType) -> SplitTableBatchedEmbeddingBagsCodegen:
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in ROWS],
        feature_table_map=TABLE_OF_FEATURE, optimizer=optimizer, learning_rate=0.3, eps=1e-3,
        pooling_mode=PoolingMode.NONE,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    for weight in kernel.split_embedding_weights():
        weight.data.normal_(generator=generator)
    return kernel


def step(
    kernel: SplitTableBatchedEmbeddingBagsCodegen, ids: list[list[list[int]]], seed: int
) -> Tensor:
    """Looks up, by feature and then by sample, and updates. Returns the rows."""
    samples = [sample for feature in ids for sample in feature]
    indices = torch.tensor([i for sample in samples for i in sample], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, samples)]).cumsum(0)
    kernel.set_learning_rate(0.3 / (1 + seed))
    rows: Tensor = kernel(indices=indices, offsets=offsets)
    rows.backward(torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)))
    return rows.detach()


# Two samples for each feature, as from two workers: repeated rows, an empty sample, and one row
# asked for by two features of a table.
STEPS = [
    [[[1, 5, 5], [5, 10]], [[5], []], [[6, 0, 6], [6]]],
    [[[], []], [[2], [1]], [[], [3]]],
    [[[1, 1], [1]], [[10], [1]], [[], []]],
]


@pytest.mark.parametrize("optimizer", list(UPDATES))
def test_rows_and_state_are_those_of_fbgemm(optimizer: EmbOptimType) -> None:
    theirs, ours = build_kernel(optimizer), build_kernel(optimizer)
    ours.forward = CpuRows(ours)  # type: ignore[method-assign]
    before = [weight.clone() for weight in ours.split_embedding_weights()]
    for number, ids in enumerate(STEPS):
        torch.testing.assert_close(step(ours, ids, number), step(theirs, ids, number))
        for our, their in zip(
            ours.split_embedding_weights(), theirs.split_embedding_weights(), strict=True
        ):
            torch.testing.assert_close(our, their)
    if optimizer != EmbOptimType.EXACT_SGD:
        for our_states, their_states in zip(
            ours.split_optimizer_states(), theirs.split_optimizer_states(), strict=True
        ):
            torch.testing.assert_close(our_states, their_states)
            assert all(state.any() for state in our_states)
    touched = [{1, 2, 5, 10}, {0, 3, 6}]
    for weight, old, rows in zip(ours.split_embedding_weights(), before, touched, strict=True):
        changed = (weight != old).any(1).nonzero().flatten().tolist()
        assert set(changed) == rows


def test_every_optimizer_that_the_cpu_may_have_is_there() -> None:
    on_cpu = {
        kind
        for name, kind in OPTIMIZERS.items()
        if not problems_without_cuda(
            optimizer=name, memory="device", weights="fp32", exchange="fp32"
        )
    }
    assert on_cpu == set(UPDATES)


def test_no_ids_at_all() -> None:
    kernel = build_kernel(EmbOptimType.EXACT_SGD)
    kernel.forward = CpuRows(kernel)  # type: ignore[method-assign]
    assert step(kernel, [[[], []]] * 3, 0).shape == (0, WIDTH)


def test_a_row_outside_the_table_is_an_error_and_no_crash() -> None:
    kernel = build_kernel(EmbOptimType.EXACT_SGD)
    kernel.forward = CpuRows(kernel)  # type: ignore[method-assign]
    with pytest.raises(IndexError, match=r"table 0 .* row 11 .* 0 to 10"):
        step(kernel, [[[11]], [[]], [[]]], 0)

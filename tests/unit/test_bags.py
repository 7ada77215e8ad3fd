from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dist_embed.embedding.bags import in_bags
from dist_embed.embedding.plan import bags_of_a_table

CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(1, 30))
def test_bags_hold_the_rows_in_their_order(counts: list[int], num_bags: int) -> None:
    rows = {f"table {number}": torch.randint(1000, (count,)) for number, count in enumerate(counts)}
    made = in_bags(rows, num_bags, CPU)
    assert torch.equal(made.values(), torch.cat(list(rows.values())))
    assert made.lengths().dtype == torch.int64
    lengths = made.lengths().view(len(rows), num_bags)
    assert lengths.sum(1).tolist() == counts
    assert (lengths.amax(1) - lengths.amin(1) <= 1).all()
    # What was given as numbers of the host is what TorchRec would find.
    found = KeyedJaggedTensor.from_lengths_sync(list(rows), made.values(), made.lengths())
    assert (made.stride(), made.length_per_key(), made.offset_per_key()) == (
        found.stride(), found.length_per_key(), found.offset_per_key(),
    )  # fmt: skip
    for key, wanted in rows.items():
        assert torch.equal(made[key].values(), wanted)


@pytest.mark.parametrize("num_workers", [1, 2, 8, 64, 10_000])
def test_a_gpu_has_enough_bags_and_no_more_than_its_kernels_count(num_workers: int) -> None:
    num_bags = bags_of_a_table("cuda", num_workers)
    assert num_bags >= 1024
    assert num_bags * num_workers >= 8192
    assert num_bags * num_workers < 2**26
    assert num_bags * num_workers * 3 < 2**31
    # The exchange counts a bag's values in 32 bits: all bags together then have 8 TiB of vectors.
    assert num_bags * 2**31 * 4 >= 8 * 2**40
    assert bags_of_a_table("cpu", num_workers) == 1

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.embedding import initial_values
from dist_embed.embedding.initial_values import VALUES_OF_COUNTER, fill_initial_rows
from dist_embed.embedding.plan import shard_of

# So many rows of width 4 are drawn at once.
AT_ONCE = initial_values._VALUES_AT_ONCE // VALUES_OF_COUNTER


def initial(first: int, rows: int, seed: int = 1, table: str = "t", width: int = 4) -> torch.Tensor:
    out = torch.full((rows, width), float("nan"))
    fill_initial_rows(out, seed=seed, table=table, first_row=first, scale=0.1)
    return out


def test_a_scale_of_zero_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "Philox", None)  # calling it would fail
    out = torch.full((3, 4), float("nan"))
    fill_initial_rows(out, seed=1, table="t", first_row=0, scale=0.0)
    assert not out.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2 * AT_ONCE), st.integers(1, 9))
def test_any_number_of_shards_holds_the_same_rows(num_rows: int, num_workers: int) -> None:
    shards = [shard_of(num_rows, rank, num_workers) for rank in range(num_workers)]
    parts = [initial(shard.first_row, shard.num_rows) for shard in shards]
    assert torch.equal(torch.cat(parts), initial(0, num_rows))


@pytest.mark.parametrize("width", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("at_once", [1, 2**6, 2**16])
def test_rows_are_the_same_from_anywhere(
    width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = initial(0, 40, width=width)
    monkeypatch.setattr(initial_values, "_VALUES_AT_ONCE", at_once)
    for first, rows in ((0, 40), (0, 0), (0, 1), (7, 9), (39, 1), (40, 0)):
        assert torch.equal(initial(first, rows, width=width), whole[first : first + rows])


def test_tables_seeds_and_rows_differ() -> None:
    start = initial(0, 2048)
    # Seeds are not cut to 32 or 63 bits.
    others = [initial(0, 2048, seed=seed) for seed in (2, 1 + 2**32, 1 + 2**63)]
    everything = torch.cat([start, initial(0, 2048, table="other"), *others])
    assert len(everything.unique(dim=0)) == 5 * 2048


@pytest.mark.parametrize("table", ["output", "source"])
def test_no_rows_of_a_thousand_million_start_equal(table: str) -> None:
    # Of these two stretches each row was equal to one of the other: their seeds were, in 32 bits.
    stretches = {128957440: 1024, 197263360: 1024}
    # Where counters reach another word of 32 or 64 bits, and by steps through all rows.
    stretches |= {2**32 - 2: 4, 2**64 - 2: 4, 2**64 + 2**32: 2}
    stretches |= dict.fromkeys(range(0, 10**9, 2 * 10**6), 2)
    rows = [initial(first, rows, table=table, width=8) for first, rows in stretches.items()]
    assert len(torch.cat(rows).unique(dim=0)) == sum(stretches.values())


@pytest.mark.parametrize("width", [1, 16, 17, 512])
def test_no_two_rows_share_a_counter(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int, int]] = []  # key, first counter, counters

    class Counted:
        def __init__(self, *, key: int, counter: int) -> None:
            self.key, self.counter = key, counter

        def random_raw(self, words: int) -> np.ndarray:
            assert words % 4 == 0  # a counter's words are drawn together
            drawn.append((self.key, self.counter, words // 4))
            self.counter += words // 4
            return np.zeros(words, dtype=np.uint64)

    monkeypatch.setattr("numpy.random.Philox", Counted)
    needed = -(-width // VALUES_OF_COUNTER)
    for first in (0, 1, 128957440, 10**9 - 2):
        initial(first, 2, width=width)
        _, counter, count = drawn.pop()
        assert not drawn
        # Row r has those from r * needed on, as many as a row needs.
        assert (counter, count) == (first * needed, 2 * needed)
    keys = set()
    for seed in (0, 1, 12, 1 + 2**32):
        for table in ("2/t", "t"):
            initial(0, 1, seed=seed, table=table)
            keys.add(drawn.pop()[0])
    assert len(keys) == 8
    assert max(keys) < 2**128


def test_values_are_normal_with_the_given_scale() -> None:
    values = initial(0, 5000, width=64)
    assert values.mean().item() == pytest.approx(0, abs=5e-4)
    assert values.std().item() == pytest.approx(0.1, rel=5e-3)
    for deviations in (0.01, 0.5, 1, 2, 3):
        share = 1 - 2 * NormalDist().cdf(-deviations)
        found = (values.abs() < deviations * 0.1).double().mean().item()
        assert found == pytest.approx(share, abs=5 * (share * (1 - share) / values.numel()) ** 0.5)
    assert 0.43 < values.abs().max().item() < 0.62
    # As fine as float32: few values are there twice.
    assert len(values.unique()) > 0.95 * values.numel()
    one, other = values[:, :32].flatten(), values[:, 32:].flatten()
    for first, second in ((one, other), (one.square(), other.square()), (one[1:], one[:-1])):
        correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
        assert correlation == pytest.approx(0, abs=5 * len(one) ** -0.5)


def test_other_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial(0, 10)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_shard_of_a_larger_tensor_can_be_filled(dtype: torch.dtype) -> None:
    physical = torch.zeros(6, 4, dtype=dtype)
    fill_initial_rows(physical[:4], seed=1, table="t", first_row=2, scale=0.1)
    assert torch.equal(physical[:4], initial(2, 4).to(dtype))
    assert physical[4:].eq(0).all()


def test_values_written_out() -> None:
    """A fresh run starts as it did before: by Philox of the row's counters and the table's key."""
    out = torch.empty(2, 35)
    fill_initial_rows(out, seed=7, table="decoder", first_row=2047, scale=0.25)
    key = int.from_bytes(hashlib.sha256(b"7/decoder").digest()[:16], "little")
    bits = np.random.Philox(key=key)
    bits.advance(2047 * 3)
    for row in range(2):
        words = [int(word) for word in bits.random_raw(12)]
        draws = [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
        normal = [NormalDist().inv_cdf((draw + 0.5) / 65536) for draw in draws]
        pairs = list(zip(normal[:18], normal[24:42], strict=True))
        values = [*(a + b for a, b in pairs), *(a - b for a, b in pairs)][:35]
        expected = torch.tensor([value * 0.25 / 2**0.5 for value in values])
        torch.testing.assert_close(out[row], expected, rtol=1e-4, atol=1e-6)

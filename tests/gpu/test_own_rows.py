"""On a GPU: the table of the exact layer, trained whole, against FBGEMM's kernels."""

from __future__ import annotations

import pytest
import torch

from dist_embed.embedding.settings import Tier, Weights
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.translation_tables import translation_tables
from dist_embed.parallel.group import Group
from tests.distributed.own_rows_case import ROWS, STEPS, WIDTH, train_step, trained_twice, values_of
from tests.gpu.device import OPTIMIZERS, TIERS, WEIGHTS


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_table_trained_whole_is_as_if_all_rows_were_looked_up(
    group: Group, optimizer: str, weights: Weights, tier: Tier
) -> None:
    # Adam moves the rows of a frozen table that is looked up, and not those of one trained whole.
    freeze = optimizer != "adam"
    before, whole, looked_up = trained_twice(group, optimizer, tier, weights, freeze)
    # Values below 2 are at most 2^-10 apart in float16; each update rounds up or down once.
    tolerance = 1e-5 if weights == "fp32" else STEPS * 2**-10
    for name, value in whole.items():
        assert not torch.equal(value, before[name]), name
        torch.testing.assert_close(
            value.float(), looked_up[name].float(), rtol=1e-6, atol=tolerance, msg=f"{name} differs"
        )


@pytest.mark.parametrize("tier", TIERS[:2])
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "sgd"])
def test_a_frozen_table_stays_with_its_state(group: Group, optimizer: str, tier: Tier) -> None:
    lookup = ShardedTables(
        translation_tables(ROWS, WIDTH, "decoder", trained_whole=True, initial_scale=0.1), group,
        optimizer=optimizer, learning_rate=0.1, eps=1e-3, seed=3, memory=tier,
    )  # fmt: skip
    train_step(lookup, 1, frozen=False)
    before = values_of(lookup)
    train_step(lookup, 5, frozen=True)  # has ids, as every step of an odd number
    after = values_of(lookup)
    own = [name for name in before if name.startswith("decoder.")]
    assert len(own) == 1 + (2 if optimizer == "adam" else 1)
    for name in own:
        assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["source.weight"], before["source.weight"])

"""The same training twice: once the output's table is trained whole, once all of its rows are
looked up, as words are in any table. On whatever device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dist_embed.embedding.settings import Memory, Weights
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.translation_tables import translation_tables
from dist_embed.parallel.group import Group

ROWS = {"source": 23, "target": 37, "output": 37}
WIDTH = 8
FROZEN_STEP, DROPPED_STEP, STEPS = 2, 3, 5
Values = dict[str, Tensor]


def trained_twice(
    group: Group,
    optimizer: str,
    memory: Memory = "device",
    weights: Weights = "fp32",
    freeze: bool = True,
    width: int = WIDTH,
) -> tuple[Values, Values, Values]:
    """Rows and state of this worker's shards before, trained whole, and trained by looking up.

    With ``freeze`` one step finds the output's table frozen; one is dropped between its halves.
    """
    lookups = [
        ShardedTables(
            translation_tables(
                ROWS, width, "decoder", trained_whole=trained_whole, initial_scale=0.1
            ),
            group, optimizer=optimizer, learning_rate=0.1, eps=1e-3, seed=3, memory=memory,
            weights=weights,
        )
        for trained_whole in (True, False)
    ]  # fmt: skip
    before = values_of(lookups[0])
    for lookup in lookups:
        for step in range(1, STEPS + 1):
            train_step(lookup, step, frozen=freeze and step == FROZEN_STEP)
    return before, values_of(lookups[0]), values_of(lookups[1])


def values_of(lookup: ShardedTables) -> Values:
    values: Values = {}
    for table in lookup.specs:
        values[f"{table}.weight"] = lookup.weight(table).clone().cpu()
        for name, state in lookup.optimizer_state(table).items():
            values[f"{table}.{name}"] = state.clone().cpu()
    return values


def train_step(lookup: ShardedTables, step: int, *, frozen: bool) -> None:
    """A step whose ids and gradients follow from its number; ``frozen``: the output's table."""
    group, device = lookup.group, lookup.group.device
    lookup.set_step(step)
    lookup.set_learning_rate(0.1 / step)
    lookup.freeze(frozenset({"decoder"} if frozen else ()))
    draw = torch.Generator().manual_seed(100 * step + group.rank)
    num_ids = 5 * (group.rank + step % 2)  # none on worker 0 in every second step
    ids: dict[str, list[Tensor]] = {
        role: [torch.randint(ROWS[role], (num_ids,), generator=draw).to(device)]
        for role in ("source", "target")
    }
    own_ids = lookup.ids_of_own_rows("decoder")
    by_looking_up = not lookup._kernels.own
    if by_looking_up:
        ids["output"] = [own_ids]
    rows = lookup.lookup(ids)
    width = lookup.specs["decoder"].width
    gradients: dict[str, Tensor] = {
        role: torch.randn(num_ids, width, generator=draw).to(device)
        for role in ("source", "target")
    }
    whole = torch.randn(len(own_ids), width, generator=draw).to(device)
    losses: list[Any] = [
        (rows.vectors(role, 0) * gradient).sum() for role, gradient in gradients.items()
    ]
    if by_looking_up:
        # The leaves are of W times the loss.
        losses.append((rows.vectors("output", 0) * whole).sum() * group.num_workers)
    else:
        own = rows.own["decoder"]
        assert torch.equal(own.weight, lookup.weight("decoder"))
        assert (own.gradient is None) == frozen
        if own.gradient is not None:
            own.gradient.begin_adding(torch.zeros(1, device=device)).add_(whole)
    loss = torch.stack(losses).sum()
    if loss.requires_grad:
        loss.backward()
    torch.manual_seed(step)
    if step != DROPPED_STEP:
        rows.backward()

"""Every kernel that trains tables against the optimizers' formulas in float64.

The tables are those of a run. What is asked of them is harder: bags of uneven lengths, empty ones
too, rows that come often, and a rate that rises from step to step.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dist_embed.embedding import kernels
from dist_embed.embedding import sharded_tables as lookup_module
from dist_embed.embedding.settings import Tier, Weights
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import WantedRows
from dist_embed.embedding.table import Table
from dist_embed.parallel.group import Group
from tests.gpu.device import DEVICE, OPTIMIZERS, TIERS, WEIGHTS

STEPS, PEAK, EPS = 4, 0.1, 1e-8
BETA1, BETA2 = 0.9, 0.999  # FBGEMM's
BAGS = 300
# Training on the CPU has kernels of its own; those of FBGEMM run there too.
KERNELS = ["fbgemm"] if DEVICE == "cuda" else ["ours", "fbgemm"]
# Rows and gradients of the ids that a step looks up, by table.
Asked = dict[str, tuple[Tensor, Tensor]]


def sizes(width: int) -> dict[str, int]:
    return {"source": min(3000, 2**20 // width), "target": 130, "output": 40}


def asked(rows: dict[str, int], width: int, step: int) -> Asked:
    """One row more than 1,024 times, one more than a warp's 32: FBGEMM has other kernels for them.
    In some steps nothing of one table.
    """
    draw = torch.Generator().manual_seed(step)
    found: Asked = {}
    for table, count in {"source": 2000, "target": 50, "output": 9 * (step % 2)}.items():
        ids = torch.randint(rows[table], (count,), generator=draw)
        if table == "source":
            ids[100:1250], ids[1300:1350] = 7, 9
            ids = ids[torch.randperm(count, generator=draw)]
        found[table] = ids.to(DEVICE), torch.randn(count, width, generator=draw).to(DEVICE) / 30
    return found


def in_uneven_bags(rows: dict[str, Tensor], num_bags: int, device: torch.device) -> Any:
    """Takes the place of `dist_embed.embedding.bags.in_bags`."""
    del num_bags
    draw = torch.Generator().manual_seed(1)
    bounds = [
        torch.randint(len(wanted) + 1, (BAGS - 1,), generator=draw).sort().values
        for wanted in rows.values()
    ]
    lengths = [
        bound.diff(prepend=bound.new_zeros(1), append=bound.new_tensor([len(wanted)]))
        for bound, wanted in zip(bounds, rows.values(), strict=True)
    ]
    return KeyedJaggedTensor(
        keys=list(rows), values=torch.cat(list(rows.values())),
        lengths=torch.cat(lengths).to(device), stride=BAGS,
    )  # fmt: skip


def trained(optimizer: str, rows: Tensor, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The rows after the steps, and the optimizer's state, in float64."""
    rows = rows.double()
    mean, square = torch.zeros_like(rows), torch.zeros_like(rows)
    if optimizer == "rowwise_adagrad":
        square = square[:, :1]
    for number, (ids, gradients) in enumerate(steps, start=1):
        total = torch.zeros_like(rows).index_add_(0, ids, gradients.double())
        touched = torch.zeros_like(rows[:, :1], dtype=torch.bool).index_fill_(0, ids, True)
        change = total
        if optimizer in ("adagrad", "rowwise_adagrad"):
            squares = total**2
            square = square + (squares if optimizer == "adagrad" else squares.mean(1, keepdim=True))
            change = total / (square.sqrt() + EPS)
        elif optimizer == "adam":  # Moments of the rows of this step alone.
            mean = torch.where(touched, BETA1 * mean + (1 - BETA1) * total, mean)
            square = torch.where(touched, BETA2 * square + (1 - BETA2) * total**2, square)
            root = (square / (1 - BETA2**number)).sqrt() + EPS
            change = mean / (1 - BETA1**number) / root
        rows = torch.where(touched, rows - PEAK * number / STEPS * change, rows)
    states = {"sgd": [], "adam": [mean, square]}.get(optimizer, [square])
    return [rows, *states]


def train(lookup: ShardedTables, steps: list[Asked]) -> None:
    for number, step in enumerate(steps, start=1):
        lookup.set_step(number)
        lookup.set_learning_rate(PEAK * number / STEPS)
        wanted = WantedRows({table: ids for table, (ids, _) in step.items()}, {})
        fetched = lookup.fetch(lookup.request(wanted))
        for table, (ids, gradients) in step.items():
            found = fetched.tables[table].vectors
            assert found.dtype == torch.float32
            if number in (1, STEPS):  # reading the table brings it up to date with a cache
                assert torch.equal(found, lookup.weight(table)[ids].float()), (table, number)
            found.grad = gradients
        torch.manual_seed(number)  # of stochastic rounding
        fetched.backward()


def distance(found: Tensor, expected: Tensor, unit: Tensor) -> float:
    return ((found.double() - expected).norm() / unit.norm()).item()


@pytest.mark.parametrize(
    "width", [8, 64, 128, *(pytest.param(width, marks=pytest.mark.heavy) for width in (512, 2048))]
)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_and_state_are_those_of_the_formulas(
    group: Group, monkeypatch: pytest.MonkeyPatch, kernel: str, optimizer: str, tier: Tier,
    weights: Weights, width: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(lookup_module, "fill_initial_rows", lambda *_, **__: None)
    monkeypatch.setattr(lookup_module, "in_bags", in_uneven_bags)
    if kernel == "fbgemm":
        monkeypatch.setattr(kernels, "CpuRows", lambda kernel, width: kernel.forward)
    rows = sizes(width)
    lookup = ShardedTables(
        {table: Table(count, width) for table, count in rows.items()}, group, optimizer=optimizer,
        learning_rate=PEAK, eps=EPS, memory=tier, weights=weights,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(width)
    first: dict[str, Tensor] = {}
    with torch.no_grad():
        for table, count in rows.items():
            lookup.weight(table).copy_(torch.randn(count, width, generator=draw) / 10)
            first[table] = lookup.weight(table).clone()
    lookup.after_writing()
    steps = [asked(rows, width, number) for number in range(1, STEPS + 1)]
    train(lookup, steps)
    # In float32 Adam's 1 - 0.999 is right to four digits.
    most = 1e-4 if optimizer == "adam" else 1e-5
    for table in rows:
        expected, *states = trained(optimizer, first[table], [step[table] for step in steps])
        found = lookup.weight(table)
        if weights == "fp32":
            assert distance(found, expected, expected - first[table].double()) < most, table
        else:
            # An update rounds a value up or down, by 2⁻¹⁰ of it at most, by half of that in root
            # mean square. Roundings of several steps add up as independent ones: twice that.
            assert distance(found, expected, expected) < STEPS**0.5 * 2**-10, table
        held = lookup.optimizer_state(table)
        assert len(held) == len(states)
        for (name, value), state in zip(held.items(), states, strict=True):
            assert distance(value.view_as(state), state, state) < most, f"{table}.{name}"

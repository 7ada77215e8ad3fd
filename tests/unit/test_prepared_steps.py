"""What `TrainStep.prepare` makes of a step's batches, and who may use it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_embed.embedding.step_rows import WantedRows
from dist_embed.model import sampler
from dist_embed.model.output import OutputShard
from dist_embed.model.output_layer import SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.optim.schedule import Rates, Schedule
from dist_embed.parallel.group import Group
from dist_embed.training import step as step_module
from dist_embed.training.settings import TrainSection
from dist_embed.training.step import TrainStep
from tests.distributed.tiny import random_pairs, work_for

CPU = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


@dataclass
class Lookup:
    """Notes the ids that are asked for."""

    group: Group
    found: WantedRows = field(default_factory=lambda: WantedRows({}, {}))
    asked: dict[str, list[Tensor]] = field(default_factory=dict)

    def wanted(self, ids: dict[str, list[Tensor]]) -> WantedRows:
        self.asked = ids
        return self.found


def step_with(lookup: Any) -> TrainStep:
    shard = OutputShard(lookup.group, 0, 31, 620)
    rate = Schedule(0.1, "constant", 0, 100)
    return TrainStep(
        torch.nn.Linear(1, 1), lookup,
        SampledSoftmax(lookup, "output", LogUniformSampler(31, 9), seed=1, shard=shard),
        None,  # type: ignore[arg-type]
        TrainSection(max_steps=100), Rates(rate, rate), compute_dtype=torch.float32, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_ids_of_a_step_lie_where_its_batches_are(device: str) -> None:
    lookup = Lookup(CPU)
    work = work_for(random_pairs(9, 1, 23, 31), CPU, 2).to(torch.device(device))
    negatives = step_with(lookup).prepare(1, work).negatives
    assert negatives is not None
    assert negatives.log_probability.device.type == device
    for ids in lookup.asked.values():
        assert {piece.device.type for piece in ids} == {device}
    assert torch.cat(lookup.asked["output"]).device.type == device


def test_what_is_prepared_for_one_step_is_not_for_another() -> None:
    step = step_with(Lookup(CPU))
    prepared = step.prepare(3, work_for(random_pairs(9, 1, 23, 31), CPU, 1))
    with pytest.raises(ValueError, match="prepared as step 3, and given as step 4"):
        step._request(4, prepared)


def test_ids_that_nobody_reads_any_more_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is sent, from pinned memory, what its steps read."""
    lookup = Lookup(replace(CPU, device=torch.device("cuda")), WantedRows(
        {"shared": torch.arange(3)}, {"source": [torch.zeros(2, 3)]}
    ))  # fmt: skip
    made_pinned: list[Tensor] = []
    for module in (step_module, sampler):
        monkeypatch.setattr(module, "pinned", lambda tensor: made_pinned.append(tensor) or tensor)
    work = work_for(random_pairs(9, 1, 23, 31), CPU, 2)
    prepared = step_with(lookup).prepare(1, work)
    sent = prepared.to(torch.device("meta"))
    read = [
        tensor
        for batch in prepared.batches
        for tensor in (batch.source_lengths, batch.target_output, batch.token_positions)
    ]
    assert sent.negatives is not None
    read += [*vars(prepared.negatives).values(), torch.arange(3), torch.zeros(2, 3)]
    assert sorted(t.tolist() for t in map(torch.flatten, made_pinned)) == sorted(
        t.tolist() for t in map(torch.flatten, read)
    )
    for batch, before in zip(sent.batches, work.batches, strict=True):
        assert batch.rectangles == before.rectangles
        assert batch.source is before.source
        assert batch.target_input is before.target_input
        devices = {name: tensor.device.type for name, tensor in vars(batch).items()
                   if name != "rectangles"}  # fmt: skip
        assert devices == {
            "source": "cpu", "target_input": "cpu", "source_lengths": "meta",
            "target_output": "meta", "token_positions": "meta",
        }  # fmt: skip
    for tensor in (*sent.wanted.rows.values(), *sent.wanted.index["source"],
                   *vars(sent.negatives).values()):  # fmt: skip
        assert tensor.device.type == "meta"

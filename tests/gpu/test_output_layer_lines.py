"""On a GPU: the lines that `dist_embed.model.output_layer` begins with, as they stand there."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import pytest
import torch

from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.model import output_layer
from dist_embed.model.output_layer import ExactSoftmax, OutputLayer, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.parallel.group import Group

WORDS = 40


@pytest.mark.parametrize("exact", [True, False])
def test_the_lines_of_a_step_lower_its_loss(group: Group, exact: bool) -> None:
    assert output_layer.__doc__
    program = textwrap.dedent("".join(re.findall(r"^    .*\n", output_layer.__doc__, re.MULTILINE)))
    tables = ShardedTables(
        {"context": Table(WORDS, 8), "word": Table(WORDS, 8, trained_whole=exact)}, group,
        learning_rate=0.3, seed=1,
    )  # fmt: skip
    output: OutputLayer = ExactSoftmax(tables, "word")
    if not exact:
        output = SampledSoftmax(tables, "word", LogUniformSampler(WORDS, 20), seed=1)
    losses = []
    for _ in range(10):
        names: dict[str, Any] = {
            "tables": tables, "output": output, "device": group.device, "step": 1, "N": 15, "W": 1,
            "contexts": torch.arange(15), "targets": torch.arange(15) + 20,
            "tokens_of_worker": [15],
        }  # fmt: skip
        exec(program, names)
        losses.append(float(names["loss"].detach()))
    assert losses[-1] < 0.5 * losses[0]

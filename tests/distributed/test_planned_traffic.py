"""What a plan says that a step sends, against the bytes that one gives its collectives."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import pytest
import torch.distributed as dist

from dist_embed.config.load import config_from_dict
from dist_embed.embedding import sharded_tables
from dist_embed.parallel import collectives
from dist_embed.parallel.group import Group
from dist_embed.planning import load_machine
from dist_embed.planning.step import Step
from dist_embed.planning.text import Text
from dist_embed.planning.traffic import traffic
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Sharded, Tiny, random_pairs

ROWS, WIDTH, PAIRS = 301, 8, 120
BAGS = 400  # of a table, as on a GPU


def sent_in_a_step(group: Group, tiny: Tiny) -> tuple[dict[str, int], int, int]:
    """Bytes to other workers by kind, the rows that this one wants, and tokens of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_tables, "bags_of_a_table", lambda *given: BAGS)
        sharded = Sharded(tiny, group)
    work = sharded.work(random_pairs(PAIRS, 1, ROWS, ROWS))
    prepared = sharded.train_step.prepare(1, work)
    sent: defaultdict[str, int] = defaultdict(int)
    exchange, gather = dist.all_to_all_single, collectives._all_gather

    def exchanged(*given: Any, **named: Any) -> Any:  # TorchRec names what it gives
        bound = inspect.signature(exchange).bind(*given, **named).arguments
        values, split = bound["input"], bound.get("input_split_sizes")
        whole = values.shape[0]
        own = split[group.rank] if split else whole // group.num_workers
        kind = "rows" if values.is_floating_point() else "ids"
        sent[kind] += values.nbytes * (whole - own) // max(1, whole)
        return exchange(*given, **named)

    def gathered(output: Any, given: Any, **how: Any) -> Any:
        sent["gathered"] += given.nbytes * (group.num_workers - 1)
        return gather(output, given, **how)

    dist.all_to_all_single, collectives._all_gather = exchanged, gathered
    try:
        sharded.train_step.run(1, prepared)
    finally:
        dist.all_to_all_single, collectives._all_gather = exchange, gather
    wanted = sum(len(rows) for rows in prepared.wanted.rows.values())
    return dict(sent), wanted, work.global_tokens


def planned(
    num_workers: int,
    rows: float,
    tokens: int,
    num_samples: int,
    clip_norm: float,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, float]:
    """Of a step that asks for so many rows."""
    output = {"output": "sampled", "num_samples": num_samples} if num_samples else {}
    config = config_from_dict(
        {
            "run": {"uri": "/nowhere"}, "data": {"synthetic": {}},
            "embedding": {"width": WIDTH}, "model": {"share_embeddings": "all", **output},
            "train": {"max_steps": 1, "batch_tokens": tokens, "clip_norm": clip_norm},
            "cluster": {"num_workers": num_workers},
        }
    )  # fmt: skip
    sizes = {"source": ROWS, "target": ROWS}
    text = Text(sizes, {}, 1.0, 1.0, 30.0, None, prepared=False, word_tables=True)
    step = Step(config, load_machine("cpu"), text, num_workers)
    step.__dict__["distinct_rows"] = {"shared": rows}
    monkeypatch.setattr("dist_embed.planning.traffic.bags_of_a_table", lambda *given: BAGS)
    return traffic(step)


@pytest.mark.parametrize("num_workers", [2, 4])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize("num_samples", [0, 40])
def test_a_step_sends_what_is_planned(
    workers: WorkerPool,
    num_samples: int,
    clip_norm: float,
    num_workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = Tiny(
        share="all", source_rows=ROWS, target_rows=ROWS, width=WIDTH, num_samples=num_samples,
        block_bytes=4 * ROWS * 400, clip_norm=clip_norm,
    )  # fmt: skip
    found = workers.run(num_workers, sent_in_a_step, tiny)
    rows = sum(wanted for _, wanted, _ in found) / num_workers
    told = planned(num_workers, rows, found[0][2], num_samples, clip_norm, monkeypatch)

    def mean(kind: str) -> float:
        return sum(sent[kind] for sent, _, _ in found) / num_workers

    back = "negatives" if num_samples else "hidden states"
    clipping = told.get("rows for clipping", 0.0)
    numbers = clipping * 8 / (8 + 4 * WIDTH)
    assert mean("ids") == pytest.approx(told["ids"] + numbers, rel=0.1)
    both_ways = told["vectors"] + told["row gradients"] + told[f"gradients of {back}"]
    assert mean("rows") == pytest.approx(both_ways + clipping - numbers, rel=0.1)
    gathered = told[back] + told.get("numbers of logits", 0.0)
    assert mean("gathered") == pytest.approx(
        gathered + told.get("counts for clipping", 0.0), rel=0.1
    )

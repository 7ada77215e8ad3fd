"""How well more workers are used: one rule for `dist-embed plan`, runs and simulated sizes."""

from __future__ import annotations

from typing import Any

from dist_embed.planning import Plan
from dist_embed.planning.efficiency import Size, efficiencies
from dist_embed.planning.estimate import estimated
from dist_embed.planning.page import overview
from tests.unit.planned import GPUS, machine, planned


def test_efficiency_is_by_the_fewest_workers_that_count() -> None:
    """By hand: 10 tokens/s of each of 2 threads; 4 workers of one thread have 30, 8 have 40."""
    sizes = [
        Size(8, 1, 40.0, counts=True), Size(1, 1, 99.0, counts=False),
        Size(1, 2, 20.0, counts=True), Size(4, 1, 30.0, counts=True),
        Size(16, 1, None, counts=True),
    ]  # fmt: skip
    assert efficiencies(sizes) == (1, [0.5, None, 1.0, 0.75, None])
    assert efficiencies([Size(1, 1, 9.0, counts=False)]) == (None, [None])


def shown(plans: list[Plan]) -> list[str]:
    header, rows = overview(plans)
    return [row[header.index("efficiency")] for row in rows]


def test_a_plan_shows_none_of_what_does_not_fit_or_shares_cores() -> None:
    def found(workers: int, **sections: Any) -> Plan:
        gpus = machine(GPUS, device_memory_gib=4.0)
        large = {"tokenizer": {"vocab_size": 10**8}, "embedding": {"memory": "device", "width": 8}}
        return estimated(planned(workers, gpus, **large, **sections))

    one, some, many = (found(workers) for workers in (1, 8, 64))
    assert (one.fits, some.fits) == (False, True)
    ratio = many.tokens_per_second / 8 / some.tokens_per_second
    assert shown([many, one, some]) == [f"{ratio:.2f}", "–", "1.00"]
    threads = {"cluster": {"threads_per_worker": 1}}
    two, four = (estimated(planned(workers, machine(cores=2), **threads)) for workers in (2, 4))
    assert (two.oversubscribed, four.oversubscribed) == (False, True)
    assert shown([two, four]) == ["1.00", "–"]

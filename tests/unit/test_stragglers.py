"""Who holds the others up, by what workers need outside of exchanges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_embed.observe.phases import PHASES
from dist_embed.parallel.group import Group
from dist_embed.training import workers
from dist_embed.training.workers import Stragglers, WorkersSpent


def spent(seconds: float, *own: float) -> WorkersSpent:
    count = len(own)
    phases: dict[str, list[float]] = {name: [0.0] * count for name in PHASES}
    return WorkersSpent(seconds, phases, list(own), [0] * count, [0] * count)


@pytest.fixture
def stragglers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stragglers:
    count = getattr(request, "param", 3)
    hosts = [f"node{rank}" for rank in range(count)]
    monkeypatch.setattr(workers, "gather_texts", lambda text, group: hosts)
    group: Any = Group(0, count, count, torch.device("cpu"), None)  # type: ignore[arg-type]
    return Stragglers(group)


def test_one_is_named_once_a_minute_is_together_and_again_when_it_has_caught_up(
    stragglers: Stragglers,
) -> None:
    assert stragglers.lines(spent(31.0, 10.0, 12.0, 30.0)) == []
    assert stragglers.lines(spent(31.0, 12.0, 10.0, 30.0)) == [
        "worker 2 on node2 holds the others up: in 62 s of steps it was busy for 60 s, the median "
        "worker for 22 s"
    ]
    assert stragglers.lines(spent(200.0, 80.0, 80.0, 190.0)) == []  # it is known
    assert stragglers.lines(spent(59.0, 30.0, 30.0, 30.0)) == []  # of another minute
    assert stragglers.lines(spent(1.0, 1.0, 1.0, 1.0)) == [
        "worker 2 on node2 holds the others up no more"
    ]
    (line,) = stragglers.lines(spent(60.0, 1.6, 1.0, 1.0))
    assert line.startswith("worker 0 on node0 holds the others up:")


def test_half_as_much_again_is_where_it_begins(stragglers: Stragglers) -> None:
    assert stragglers.lines(spent(100.0, 40.0, 60.0, 40.0)) == []
    assert len(stragglers.lines(spent(100.0, 40.0, 61.0, 40.0))) == 1


def test_metrics_have_every_worker_s_phases_and_those_of_worker_0_by_themselves() -> None:
    found = spent(3.0, 1.0, 2.0)
    found.phases["data wait"][:] = [0.25, 0.1234567]
    told = found.as_metrics()
    assert told["phase/data_wait"] == 0.25
    assert told["workers/phase/data_wait"] == [0.25, 0.123457]
    assert len([name for name in told if name.startswith("workers/phase/")]) == len(PHASES)
    many = spent(3.0, *[1.0] * 65).as_metrics()
    assert not [name for name in many if name.startswith("workers/phase/")]
    assert len(many["workers/own_seconds"]) == 65


@pytest.mark.parametrize("stragglers", [2], indirect=True)
def test_of_two_workers_the_slow_one_is_named(stragglers: Stragglers) -> None:
    (line,) = stragglers.lines(spent(60.0, 58.0, 30.0))
    assert line.startswith("worker 0 on node0 holds")


@pytest.mark.parametrize("stragglers", [1], indirect=True)
def test_one_worker_alone_holds_nobody_up(stragglers: Stragglers) -> None:
    assert stragglers.lines(spent(90.0, 90.0)) == []

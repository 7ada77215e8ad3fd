"""What `joined_group` is given, and what comes after its block."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.checkpoint.of_tables import Checkpoints
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.model.output_layer import ExactSoftmax, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.parallel import group as group_module
from dist_embed.parallel.group import joined_group, lone_group
from dist_embed.parallel.rendezvous import hosted_store


@pytest.mark.parametrize("joined", [joined_group, lone_group])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [({"timeout_seconds": seconds}, "timeout_seconds: .* is not allowed: a number above 0, at most "
      "31,536,000") for seconds in (0, -1, float("nan"), float("inf"), 1e12, True, "5", None)]
    + [({"device_type": device}, "device_type: .* is not allowed: one of auto, cpu, cuda")
       for device in ("gpu", None, 0)],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_group_is_made(
    joined: Callable[..., Any], wrong: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected), joined(**wrong):
        raise AssertionError("it was made")
    assert not torch.distributed.is_initialized()


def test_after_a_restart_by_torchrun_nothing_of_before_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store of torchrun is the same one, with addresses where nobody listens any more."""
    store = hosted_store()
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    for restart in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        with joined_group("cpu"):
            joined = dist.distributed_c10d._get_default_store()
            assert not joined.check(["left"])
            joined.set("left", "here")
    # Of several nodes each has a count of its own: by it their workers would not meet.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    store.set("default_pg//left", "here")
    for restart in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        with joined_group("cpu"):
            dist.distributed_c10d._get_default_store().set("met", str(restart))
            assert dist.distributed_c10d._get_default_store().check(["met"])


def test_at_an_error_exchanges_of_gpus_are_broken_off_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    init, destroy = dist.init_process_group, dist.destroy_process_group
    monkeypatch.setattr(group_module, "resolve_device", lambda *args, **more: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: init("gloo", **more))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: called.append("end"))
    monkeypatch.setattr(
        dist.distributed_c10d, "_abort_process_group", lambda: called.append("broken off")
    )
    try:
        with lone_group("cuda"):
            pass
        assert called == ["end"]
        destroy()
        with pytest.raises(KeyError), lone_group("cuda"):
            raise KeyError
        assert called == ["end", "broken off"]
    finally:
        destroy()


def test_what_belongs_to_a_group_is_used_inside_its_block(tmp_path: Path) -> None:
    ids = torch.tensor([1, 2])
    with lone_group("cpu") as group:
        tables = ShardedTables({"w": Table(9, 4), "v": Table(9, 4, trained_whole=True)}, group)
        exact = ExactSoftmax(tables, "v")
        sampled = SampledSoftmax(tables, "w", LogUniformSampler(9, 3))
        checkpoints = Checkpoints(str(tmp_path), tables)
        drawn = sampled.draw(1, [ids])
        assert drawn is not None
        rows = tables.lookup({"w": sampled.words([ids], drawn)})
        step_loss = exact.start(rows, None, 1, 1.0)
        hidden = rows.vectors("w")
        hidden.sum().backward()
    calls: dict[str, Callable[[], Any]] = {
        "lookup": lambda: tables.lookup({"w": ids}),
        "backward": rows.backward,
        "load": checkpoints.load,
        "save": lambda: checkpoints.save(1),
        "a softmax's start": lambda: sampled.start(rows, drawn, 1, 1.0),
        "exact.start": lambda: exact.start(rows, None, 1, 1.0),
        "of": lambda: step_loss.of(hidden, 0, ids, [2]),
        "new tables": lambda: ShardedTables({"w": Table(9, 4)}, group),
        "a new softmax": lambda: ExactSoftmax(tables, "v"),
        "new checkpoints": lambda: Checkpoints(str(tmp_path), tables),
    }
    for call in calls.values():
        with pytest.raises(UserError, match=re.escape("block `with joined_group()` of these")):
            call()
    assert tables.weight("w").shape == (9, 4)  # of this worker alone, and there still

"""The benchmark of saving and loading, on one worker: what it does with a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_embed.bench import checkpoint
from dist_embed.parallel.group import Group

ROWS, WIDTH, ROUNDS = 41, 3, 3
WAYS = {
    "client put", "client get", "save", "stall, first", "stall, first: until written", "stall",
    "stall: until written", "load", "load, first", "load by 2 workers", "DCP save", "DCP load",
}  # fmt: skip


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch, alone: Group) -> None:
    @contextmanager
    def joined(device: str, timeout_seconds: float) -> Iterator[Group]:
        assert (device, timeout_seconds) == ("cpu", 900.0)
        yield alone

    monkeypatch.setattr(checkpoint, "joined_group", joined)
    # Of a process full of tests it takes long, and is asked for before every measurement.
    monkeypatch.setattr(checkpoint, "gc", SimpleNamespace(collect=lambda: None))


@pytest.mark.usefixtures("one_worker")
def test_every_way_of_saving_and_loading_is_measured_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [str(tmp_path / "one"), str(tmp_path / "two")]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "mine.txt").write_text("not a benchmark's")
    sides: list[str] = []

    def noted(name: str, side: Any) -> Any:
        def run(bench: Any, uri: str) -> None:
            assert Path(uri).name == name
            sides.append(name)
            side(bench, uri)
            assert not Path(uri).exists()

        return name, run

    monkeypatch.setattr(checkpoint, "_SIDES", tuple(noted(*one) for one in checkpoint._SIDES))
    said: list[Any] = []
    found = checkpoint._measure(uris, ROWS, WIDTH, ROUNDS, said.append)
    turns = [["raw", "ours", "dcp"], ["ours", "dcp", "raw"], ["dcp", "raw", "ours"]]
    assert sides == [name for _ in uris for turn in turns for name in turn]
    assert (found["rows"], found["width"], found["workers"]) == (ROWS, WIDTH, 1)
    assert found["total_bytes"] == found["shard_bytes"] == 4 * ROWS * (WIDTH + 1)
    assert list(found["stores"]) == uris
    for store in found["stores"].values():
        for figures in ("seconds", "all_rounds", "extra_bytes"):
            assert set(store[figures]) == WAYS
        for way, seconds in store["all_rounds"].items():
            assert len(seconds) == ROUNDS
            assert store["seconds"][way] == sorted(seconds)[1]
            assert min(seconds) > 0
        assert store["bytes_read_per_needed"] >= 1
    lines = [event["text"] for event in said]
    assert {event["kind"] for event in said} == {"line"}
    assert [line for line in lines if "round" in line] == [
        f"{uri}, round {number}" for uri in uris for number in (1, 2, 3)
    ]
    # What was there stays; what the benchmark has written is gone.
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]
    assert list((tmp_path / "two").iterdir()) == []


def test_dcp_is_told_of_the_whole_table_whose_rows_workers_need_not_divide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        checkpoint, "DTensor",
        SimpleNamespace(from_local=lambda *given, **how: told.append((given, how))),
    )  # fmt: skip
    bench: Any = SimpleNamespace(num_rows=ROWS)
    mesh: Any = "two workers"
    for own, shape in ((torch.zeros(21, WIDTH), (ROWS, WIDTH)), (torch.zeros(20), (ROWS,))):
        checkpoint._distributed(bench, own, mesh)
        (tensor, on, (split,)), how = told.pop()
        assert (tensor is own, on, split.dim) == (True, mesh, 0)
        assert (how["shape"], how["stride"]) == (shape, own.stride())

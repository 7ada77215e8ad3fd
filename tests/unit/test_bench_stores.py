"""The benchmark of saving and loading, on one worker: what it does with a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_embed.bench import checkpoint
from dist_embed.parallel.device import device_name
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
    found = checkpoint._measure(uris, ROWS, WIDTH, ROUNDS, "cpu", said.append)
    turns = [["raw", "ours", "dcp"], ["ours", "dcp", "raw"], ["dcp", "raw", "ours"]]
    assert sides == [name for _ in uris for turn in turns for name in turn]
    assert (found["rows"], found["width"], found["workers"]) == (ROWS, WIDTH, 1)
    assert found["device"] == device_name(torch.device("cpu"))
    assert found["total_bytes"] == found["shard_bytes"] == 4 * ROWS * (WIDTH + 1)
    assert list(found["stores"]) == uris
    for store in found["stores"].values():
        assert set(store["seconds"]) == set(store["all_rounds"]) == WAYS
        assert list(store["extra_bytes"]) == ["resident"]
        assert set(store["extra_bytes"]["resident"]) == WAYS
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


class Cuda:
    """Notes in which order a GPU is asked, and answers for its memory."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.now = {"pinned": [5, 7], "device": [100, 160]}  # taken at first, and at most

    def __getattr__(self, name: str) -> Any:
        def answer(*given: Any) -> Any:
            self.asked.append(name)
            pinned, device = self.now["pinned"], self.now["device"]
            return {
                "host_memory_stats": {
                    "allocated_bytes.current": pinned[0], "allocated_bytes.peak": pinned[1]
                },
                "memory_allocated": device[0], "max_memory_allocated": device[1],
            }.get(name)  # fmt: skip

        return answer


def test_a_gpus_time_and_memory_are_read_when_its_work_is_done(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(
        torch._C, "_host_emptyCache", lambda: cuda.asked.append("given back"), raising=False
    )
    monkeypatch.setattr(checkpoint, "meet", lambda group: cuda.asked.append("met") or now())
    monkeypatch.setattr(checkpoint.dist, "all_reduce", lambda *given, **how: None)
    monkeypatch.setattr(checkpoint, "reset_peak", lambda: 1000)
    monkeypatch.setattr(checkpoint, "peak_bytes", lambda: 1010)
    monkeypatch.setattr(Tensor, "to", lambda self, device: self)
    times = iter([0.0, 3.0, 7.5])

    def now() -> float:
        cuda.asked.append("clock")
        return next(times)

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(perf_counter=now))
    group = replace(alone, device=torch.device("cuda", 0))
    bench = checkpoint._Bench(group, lambda event: None, torch.ones(2, 3), torch.ones(2), 2)
    with bench.timed("save"):
        cuda.asked.append("saving")
    place = cuda.asked.index
    met = [n for n, name in enumerate(cuda.asked) if name == "met"]
    clock = [n for n, name in enumerate(cuda.asked) if name == "clock"]
    assert met[0] < place("reset_peak_memory_stats") < clock[1] < place("saving") < met[1]
    assert clock[2] == met[1] + 1  # once the GPU is done
    assert place("reset_peak_host_memory_stats") < clock[1]
    assert bench.seconds == {"save": [4.5]}
    assert bench.memory == {
        "resident": {"save": [10.0]}, "pinned": {"save": [2.0]}, "device": {"save": [60.0]},
    }  # fmt: skip
    cuda.asked.clear()
    checkpoint._give_back_pinned(group.device)
    assert cuda.asked == ["synchronize", "given back"]


def test_the_client_is_given_bytes_of_the_host() -> None:
    """Of a table on a GPU; what the copy takes is no part of the store's time."""
    bench: Any = checkpoint._Bench(
        None, None, torch.ones(2, 3, device="meta"), torch.ones(2), 2  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="meta"):  # so it is copied
        bench.pieces()

"""The benchmarks, so small that their figures mean nothing: they run, and say what they promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Command

FEW = ["--workers", "2", "--rounds", "1"]


def figures_of(path: Path) -> Any:
    return json.loads(path.read_text())["figures"]


@pytest.mark.heavy
def test_vocabulary_alone_and_beside_plain_pytorch(as_process: Command, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    shown = as_process(
        "bench", "vocabulary", "--words", "600", "900", "--widths", "8", "--against", "700",
        "--tokens", "64", "--full-tokens", "32", "--samples", "50", "--steps", "2", *FEW,
        "--output", str(out),
    ).stdout  # fmt: skip
    found = figures_of(out)
    assert [[one["case"]["num_words"] for one in group] for group in found["speeds"]] == [
        [600, 900], [700, 700], [700, 700],
    ]  # fmt: skip
    for kind in ("dist_embed, sampled", "nn.Embedding(sparse), sampled", "full softmax"):
        assert kind in shown
    phases = [set(one["peaks"]) for one in found["memory"]]
    assert {"built", "trained", "saved", "loaded"} in phases  # ours
    assert {"built", "trained"} in phases  # theirs


def test_a_benchmark_of_nothing_is_refused(refused: Callable[..., str]) -> None:
    said = refused("bench", "vocabulary", "--words", "--against", "0")
    assert "--words: no size is given" in said
    assert "0 is not allowed: at least 1" in refused("bench", "vocabulary", "--rounds", "0")
    said = refused("bench", "vocabulary", "--full-tokens", "100")
    assert "--full-tokens: 100 is not allowed: sentences have 32 tokens" in said


@pytest.mark.heavy
def test_output_layers_beside_plain_cross_entropy(as_process: Command, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    shown = as_process(
        "bench", "output", "--device", "cpu", "--tokens", "64", "--width", "16", "--rows", "500",
        "--logits-block-mib", "auto", "0.01", "--sampled-rows", "300", "--samples", "100",
        "--repeats", "2", "--output", str(out),
    ).stdout  # fmt: skip
    names = [side["name"].split(",")[0] for side in figures_of(out)["sides"]]
    assert names == ["exact", "exact", "F.cross_entropy", "sampled"]
    assert "| F.cross_entropy " in shown


@pytest.mark.heavy
def test_checkpoint_beside_the_stores_client(as_process: Command, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    uri = str(tmp_path / "store")
    mine = [tmp_path / "store" / name / "mine.txt" for name in ("raw", "ours", "dcp")]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("not a benchmark's")
    as_process("bench", "checkpoint", uri, "--rows", "2000", "--width", "8", "--device", "cpu",
               *FEW, "--output", str(out))  # fmt: skip
    store = figures_of(out)["stores"][uri]
    assert {"save", "load", "stall", "DCP save", "DCP load"} <= set(store["seconds"])
    assert store["bytes_read_per_needed"] >= 1
    assert all(path.exists() for path in mine)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["dcp", "ours", "raw"]


@pytest.mark.heavy
def test_steps_beside_plain_ddp(config: str, as_process: Command, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    as_process("bench", "baseline", config, "train.precision=bf16", "--rounds", "1",
               "--output", str(out))  # fmt: skip
    figures = figures_of(out)
    assert set(figures["tokens_per_second"]) == {"dist_embed bf16", "plain DDP bf16"}
    assert all(speed > 0 for speed in figures["tokens_per_second"].values())
    assert figures["left_out"] == {}


@pytest.mark.heavy
def test_a_step_of_two_workers_is_recorded(
    config: str, as_process: Command, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    shown = as_process("bench", "step", config, "--steps", "2", "--profile", str(tmp_path),
                       "--output", str(out)).stdout  # fmt: skip
    found = figures_of(out)
    assert found["workers"] == found["steps"] == 2
    assert found["on_host"][0]["name"] in shown
    assert (tmp_path / "trace.json.gz").exists()


@pytest.mark.heavy
def test_benchmarks_of_what_goes_in_and_out(
    config: str, as_process: Command, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded.json"
    for format, ways in (("glove", {"each its part", "everyone all"}),
                         ("fasttext-bin", {"everyone all"})):  # fmt: skip
        as_process(
            "bench", "pretrained", "--words", "3000", "--width", "8", "--rounds", "1",
            "--format", format, "--folder", str(tmp_path), "--output", str(loaded),
        )  # fmt: skip
        figures = figures_of(loaded)
        assert set(figures["rows_per_second"]) == ways
        assert all(speed > 0 for speed in figures["rows_per_second"].values())
    as_process("train", config)
    written = tmp_path / "engine.json"
    as_process("bench", "export", str(tmp_path / "run"), "--output", str(written))
    engine = figures_of(written)["engine"]
    assert [one["kind"] for one in engine] == ["float32", "int8"]
    # So short a run writes sentences up to the limits of length, which differ.
    assert all(0 <= one["bleu"] <= 100 and one["sentences_per_second"] > 0 for one in engine)
    assert engine[1]["model_bytes"] < engine[0]["model_bytes"]


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_alone")
def test_a_step_under_ray_beside_a_local_one(as_process: Command, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    shown = as_process(
        "bench", "cluster", "--stages", "overhead", "loader", "--rounds", "1", "--steps", "20",
        "--output", str(out),
    ).stdout  # fmt: skip
    figures = figures_of(out)
    seconds = figures["stages"]["overhead"]["step_seconds"]
    assert set(seconds) == {"local", "ray"}
    assert all(value > 0 for value in seconds.values())
    assert set(figures["left_out"]) == {"loader"}
    assert "left out: --store" in shown

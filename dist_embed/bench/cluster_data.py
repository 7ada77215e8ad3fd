"""How fast text is prepared by more processes, and how fast a loader reads from a store."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

from dist_embed.api.data import prepare
from dist_embed.api.training import train
from dist_embed.bench.cluster_runs import bench_config, silent
from dist_embed.bench.workers import Say
from dist_embed.config.schema import Config
from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.loader import Loader, Position
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import SIDES, PreparedData
from dist_embed.storage import uri as storage

_PAIRS, _HELD_OUT = 200_000, 500
_NUMBERS = (1, 2)  # of processes
_EPOCHS = 3  # that the loader reads
_WORKERS = 2


def measure_prepare(folder: str, say: Say) -> dict[str, Any]:
    """MB of text that are prepared a second, by processes of this machine and by tasks of a Ray."""
    from dist_embed.cluster.ray_head import own_ray
    from dist_embed.cluster.ray_private import private_ray

    corpora = {
        split: _write_text(folder, split, count)
        for split, count in (("train", _PAIRS), ("validation", _HELD_OUT))
    }
    paths = [path for sides in corpora.values() for path in sides.values()]
    size = sum(Path(path).stat().st_size for path in paths)
    speeds: dict[str, dict[int, float]] = {"processes": {}, "Ray tasks": {}}

    def measure(by: str, number: int, **cluster: Any) -> None:
        name = f"{by.split()[-1]}-{number}"
        data = {**corpora, "synthetic": None, "num_processes": number, "uri": f"{folder}/{name}"}
        config = bench_config(folder, "run", data=data, cluster=cluster)
        began = time.perf_counter()
        prepare(config, on_event=silent)
        speeds[by][number] = size / 1e6 / (time.perf_counter() - began)
        say(f"{number} {by}: {speeds[by][number]:.2f} MB/s")

    for number in _NUMBERS:
        measure("processes", number)
        with private_ray(), own_ray(number) as address:
            measure("Ray tasks", number, launcher="ray", address=address)
    return {"corpus_bytes": size, "mb_per_second": speeds}


def measure_loader(folder: str, store: str, steps: int) -> dict[str, float]:
    """Target tokens a second of the steps whose part a worker's loader reads from ``store``, and of
    those steps as they are trained.
    """
    data_uri = storage.join(store, f"dist_embed-bench-{secrets.token_hex(4)}")
    config = bench_config(
        folder, "run", train={"max_steps": steps},
        data={"uri": data_uri, "synthetic": {"sentences": _PAIRS}},
    )  # fmt: skip
    try:
        data = prepare(config, on_event=silent)
        trained = train(config, on_event=silent).tokens_per_second
        assert trained is not None
        return {"read": _read(config, data), "trained": trained}
    finally:
        storage.remove(data_uri)


def _write_text(folder: str, split: str, count: int) -> dict[str, str]:
    """A generated corpus: a file for each side."""
    paths = {side: f"{folder}/{split}.{side}.txt" for side in SIDES}
    pairs = SyntheticLanguage(nouns=120, verbs=60, adjectives=40, seed=1).pairs(count, split, 1)
    with open(paths["source"], "w") as source, open(paths["target"], "w") as target:
        for left, right in pairs:
            source.write(f"{left}\n")
            target.write(f"{right}\n")
    return paths


def _read(config: Config, data: PreparedData) -> float:
    loader = Loader(
        data.folder_uri, data.splits["train"].shards, index=index_of(data, "train"),
        batch_tokens=config.train.batch_tokens, seed=config.run.seed, rank=0,
        num_workers=_WORKERS, accumulate=1,
    )  # fmt: skip
    tokens, began = 0, time.perf_counter()
    for step in loader.steps(Position()):
        tokens += step.global_tokens
        if step.after.epoch == _EPOCHS:
            break
    return tokens / (time.perf_counter() - began)

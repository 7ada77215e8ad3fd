"""How long an exact step takes at least, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dist_embed.cluster import launch as launching
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.training import step_seconds
from dist_embed.training.step_seconds import (
    CPU_THREAD_RATE,
    GPU_RATE,
    LEAST_FILL,
    check_step,
    exact_step_seconds,
    worker_rate,
)
from dist_embed.training.tasks import Evaluate, Task, Train

TRAIN = Train()


def config_of(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "run": {"uri": "/shared/x"}, "data": {"synthetic": {}},
        "train": {"max_steps": 1, "batch_tokens": 1000}, "embedding": {"width": 20},
        "cluster": {"launcher": "local", "threads_per_worker": 3},
    }  # fmt: skip
    for section, settings in sections.items():
        values[section] = values.get(section, {}) | settings
    return config_from_dict(values)


def test_products_of_tokens_rows_and_width() -> None:
    flop = LEAST_FILL * 1000 * 34 * 20  # 100 words on 3 workers
    assert exact_step_seconds(config_of(), 100, 3, 1e3) == pytest.approx(6 * flop / 1e3)
    frozen = config_of(embedding={"tables": {"output": {"freeze": True}}})
    assert exact_step_seconds(frozen, 100, 3, 1e3) == pytest.approx(4 * flop / 1e3)
    source = config_of(embedding={"tables": {"source": {"freeze": True}}})
    assert exact_step_seconds(source, 100, 3, 1e3) == pytest.approx(6 * flop / 1e3)


def test_what_a_worker_multiplies_at_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    usual, fast = (3 * CPU_THREAD_RATE[kind] for kind in ("usual", "matrix units"))
    for machine, flags, precision, expected in (
        ("x86_64", "avx512_bf16", "auto", usual), ("x86_64", "amx_bf16", "auto", fast),
        ("x86_64", "amx_bf16", "fp32", usual), ("aarch64", "", "fp32", fast),
    ):  # fmt: skip
        monkeypatch.setattr("platform.machine", lambda name=machine: name)
        (tmp_path / "proc/cpuinfo").write_text(f"flags : {flags}\n")
        assert worker_rate("cpu", 3, precision, tmp_path) == expected
    assert worker_rate("cuda", 3, "auto", tmp_path) == GPU_RATE > fast


def test_only_a_step_of_more_than_a_minute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_seconds, "worker_rate", lambda *_: 1e6)
    words = 2 * int(60e6 / (LEAST_FILL * 1000 * 20 * 6))  # a minute on two workers
    check_step(config_of(), words, 2, "cpu")
    with pytest.raises(UserError) as caught:
        check_step(config_of(), 5 * words, 2, "cpu")
    assert str(caught.value) == (
        f"model.output: 'exact' is not allowed for {5 * words:,} words with 2 workers: one step of "
        "train.batch_tokens=1,000 would take 5.0 minutes or more; with model.output=sampled its "
        "cost does not grow with the vocabulary"
    )
    check_step(config_of(), 5 * words, 11, "cpu")
    check_step(config_of(model={"output": "sampled"}), 5 * words, 2, "cpu")


@pytest.mark.parametrize("torchrun", [False, True])
def test_a_training_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, torchrun: bool
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(launching, "check_step", lambda config, *given: asked.append(given))
    monkeypatch.setattr(launching, "run_worker", lambda *_: None)
    monkeypatch.setattr(launching, "_check_machine", lambda *_: None)
    monkeypatch.setattr("dist_embed.cluster.local.launch_local", lambda *_, **__: None)
    monkeypatch.setattr("dist_embed.cluster.ray_train.launch_ray", lambda *_, **__: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    if torchrun:
        os.environ.update(TORCHELASTIC_RUN_ID="none", LOCAL_RANK="0", WORLD_SIZE="7")

    def launch(task: Task[Any] = TRAIN, sizes: Any = None, **cluster: Any) -> None:
        config = config_of(cluster=cluster)
        sizes = {"source": 5, "target": 9} if sizes is None else sizes
        launching.launch(task, config, vocabulary_size=sizes, on_event=print)

    launch()
    assert asked == [(9, 7 if torchrun else 2, "cpu")]
    launch(Evaluate("test"))
    launch(sizes={})
    assert len(asked) == 1
    if not torchrun:  # with a cluster the workers' machines are others
        for device in ("cpu", "auto"):
            launch(launcher="ray", address="there:6379", device=device, num_workers=4)
        assert asked[1:] == [(9, 4, "cuda")]
        launch(launcher="ray", address="there:6379", num_workers={"min": 2, "max": 8})
        assert asked[-1] == (9, 2, "cuda")  # then a step takes longest

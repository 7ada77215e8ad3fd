"""What is refused before any worker starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.cluster import launch as launching
from dist_embed.config.load import config_from_dict
from dist_embed.config.paths import with_absolute_paths
from dist_embed.embedding.memory import CUDA_PROCESS_BYTES, GIB, READING_BYTES, tokenizer_bytes
from dist_embed.errors import UserError
from dist_embed.model.settings import ModelSection
from dist_embed.observe.quiet import worker_log
from dist_embed.training.needs import dense_parameters
from dist_embed.training.tasks import Evaluate, Task, Train

VOCABULARY = {"source": 2**20, "target": 2**20}


def launch(monkeypatch: pytest.MonkeyPatch, **sections: dict[str, Any]) -> list[Any]:
    """The arguments that the workers of two local processes would get."""
    values: dict[str, Any] = {
        "run": {"uri": "/shared/x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
        "cluster": {"launcher": "local"},
    }  # fmt: skip
    for section, settings in sections.items():
        values[section] = values.get(section, {}) | settings
    started: list[Any] = []
    monkeypatch.setattr(
        "dist_embed.cluster.local.launch_local", lambda task, given, **how: started.append(given)
    )
    launching.launch(
        Train(), config_from_dict(values), vocabulary_size=VOCABULARY, on_event=lambda event: None
    )
    return started


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, host_bytes: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launching, "available_bytes", lambda: host_bytes)


@pytest.mark.parametrize(
    "embedding",
    [{"optimizer": "adam"}, {"memory": "uvm"}, {"weights": "fp16"}, {"exchange": "bf16"}],
)
def test_what_auto_has_become_is_checked_against_the_tables(
    monkeypatch: pytest.MonkeyPatch, embedding: dict[str, str]
) -> None:
    without_gpu(monkeypatch)
    ((key, value),) = embedding.items()
    with pytest.raises(UserError, match=f"^embedding.{key}: '{value}' is not allowed on the CPU"):
        launch(monkeypatch, embedding=embedding)


def test_workers_are_told_the_device_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    ((_, config),) = launch(monkeypatch)
    assert config.cluster.device == "cpu"
    with_gpus(monkeypatch, 10**15)
    ((_, config),) = launch(monkeypatch, embedding={"memory": "uvm", "weights": "fp16"})
    assert config.cluster.device == "cuda"


@pytest.mark.parametrize(
    ("embedding", "low_memory", "tables"),
    # Two tables of 2^20 rows of 256 values, by rows over two workers. In place, one of them at a
    # time is read into host memory first.
    [({"memory": "uvm", "width": 256}, True, 3 * GIB),
     ({"memory": "uvm_caching", "width": 256, "weights": "fp16"}, True, 3 * GIB // 2),
     ({"memory": "uvm", "width": 256}, False, 4 * GIB),
     ({"memory": "device", "width": 256}, False, 2 * GIB),
     ({"memory": "auto", "width": 256}, True, GIB)],
)  # fmt: skip
def test_host_memory_of_workers_with_gpus(
    monkeypatch: pytest.MonkeyPatch, embedding: dict[str, Any], low_memory: bool, tables: int
) -> None:
    sections: dict[str, Any] = {
        "embedding": embedding | {"optimizer": "sgd"},
        "checkpoint": {"saving": "in_place" if low_memory else "waiting"},
    }
    # The dense model is on the GPU; what it is loaded through, with Adam's moments, is not.
    loading = 0 if low_memory else 12 * dense_parameters(ModelSection(), 256)
    each = CUDA_PROCESS_BYTES + READING_BYTES["local"] + tokenizer_bytes(2**20) + loading
    needed = 2 * each + tables
    with_gpus(monkeypatch, needed)
    assert launch(monkeypatch, **sections)
    with_gpus(monkeypatch, needed - 1)
    # On one machine nothing comes or goes.
    for workers in (2, {"min": 1, "max": 2}):
        with pytest.raises(UserError, match=r"cluster.num_workers=2 needs about"):
            launch(monkeypatch, **sections, cluster={"num_workers": workers})


def test_a_block_of_logits_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    with pytest.raises(UserError, match=r"needs about.*model.logits_block_mib \(1e\+07 MiB\)"):
        launch(monkeypatch, model={"logits_block_mib": 1e7})


@pytest.mark.parametrize("key", ["run.uri", "data.uri"])
def test_folders_on_a_cluster_are_the_same_for_all_nodes(key: str) -> None:
    uris = {"run.uri": "/shared/run", "data.uri": "s3://bucket/data"} | {key: "runs/x"}
    config = config_from_dict(
        {"run": {"uri": uris["run.uri"]}, "data": {"uri": uris["data.uri"], "synthetic": {}},
         "train": {"max_steps": 1}}
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"{key}: 'runs/x' is not allowed on a Ray cluster"):
        with_absolute_paths(config, on_cluster=True)


def test_logs_of_a_run_at_a_url_lie_on_the_workers_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_log("/runs/one", 3, trains=True) == Path("/runs/one/logs/worker-3.log")
    monkeypatch.setattr("tempfile.tempdir", "/scratch")
    one, other = (
        worker_log(f"s3://bucket/{name}", 0, trains=True).parent for name in ("one", "other")
    )
    assert one != other
    assert one.parent == other.parent == Path(f"/scratch/dist_embed-{os.getuid()}")


def test_files_of_vectors_are_found_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    file = {"uri": "v.npy", "words": "s3://bucket/words.txt", "format": "npy"}
    config = config_from_dict(
        {"run": {"uri": "s3://bucket/run"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "embedding": {"tables": {"source": {"pretrained": file}}}}
    )  # fmt: skip
    source = with_absolute_paths(config, on_cluster=False).embedding.tables.source
    assert source is not None
    assert source.pretrained is not None
    assert (source.pretrained.uri, source.pretrained.words) == ("/tmp/v.npy", file["words"])
    with pytest.raises(
        UserError, match=r"tables\.source\.pretrained\.uri: 'v\.npy' is not allowed"
    ):
        with_absolute_paths(config, on_cluster=True)


def test_a_worker_of_torchrun_does_the_work_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    done: list[Any] = []
    monkeypatch.setattr(launching, "run_worker", lambda *given: done.append(given) or "result")
    # Not even the memory of its machine is looked at: each worker would count that of all.
    monkeypatch.setattr(launching, "available_bytes", lambda: 0)
    config = config_from_dict(
        {"run": {"uri": "/shared/x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "cluster": {"address": "there:6379"}}
    )  # fmt: skip
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    result = launching.launch(
        Train("there"), config, vocabulary_size=VOCABULARY, on_event=print, stop_seconds=9.0
    )
    ((task, resolved, on_event),) = done
    assert (result, task, on_event) == ("result", Train("there"), print)
    assert resolved.cluster.device == "cpu"
    assert launching.cluster_address(config) is None
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK"):
        with monkeypatch.context() as without:
            without.delenv(name)
            assert launching.cluster_address(config) == "there:6379"


def test_which_cluster_a_task_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(instead: Any = None, **cluster: Any) -> str | None:
        values: dict[str, Any] = {"data": {"synthetic": {}}, "train": {"max_steps": 1}}
        config = config_from_dict({"run": {"uri": "/x"}, "cluster": cluster} | values)
        return launching.cluster_address(config, instead)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address() is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address() == "auto"
    assert address(address="there:6379") == "there:6379"
    assert address(launcher="local") is None
    assert address("ray", launcher="local") == "auto"
    assert address("local", address="there:6379") is None
    assert address("auto", launcher="local") == "auto"  # by the environment
    assert address("auto", address="there:6379", launcher="local") == "there:6379"
    for server in ("http://head:8265", "https://head"):
        line = f"{server!r} is not allowed: .* `dist-embed submit` .* HOST:PORT .*launcher=local"
        monkeypatch.setenv("RAY_ADDRESS", server)
        for launcher in (None, "ray"):
            with pytest.raises(UserError, match=f"^RAY_ADDRESS: {line}") as caught:
                address(launcher)
            assert len(str(caught.value).splitlines()) == 1
        assert address("local") is None
        assert address(address="there:6379") == "there:6379"
        with pytest.raises(UserError, match=f"^cluster.address: {line}"):
            address(address=server)
    for client in ("ray://head:10001", "ray://head"):
        monkeypatch.setenv("RAY_ADDRESS", client)
        line = f"{client!r} is not allowed: .* HOST:PORT or auto; .*`dist-embed submit` sends"
        with pytest.raises(UserError, match=f"^RAY_ADDRESS: {line}"):
            address()
        with pytest.raises(UserError, match=f"^cluster.address: {line}"):
            address(address=client)
    monkeypatch.delenv("RAY_ADDRESS")
    assert address("auto", launcher="ray") is None
    for wrong in ("spark", "", 3):
        with pytest.raises(
            UserError, match=f"^launcher: {wrong!r} is not allowed: one of auto, local, ray$"
        ):
            address(wrong)


@pytest.mark.parametrize("address", [None, "there:6379"])
def test_a_ray_of_our_own_is_asked_for_workers_of_this_machine_s_device(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    without_gpu(monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "dist_embed.cluster.ray_train.launch_ray",
        lambda *_, **how: given.append(how),
    )
    config = config_from_dict(
        {"run": {"uri": "/shared/x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "cluster": {"address": address, "launcher": "ray"}}
    )  # fmt: skip

    def start() -> None:
        launching.launch(
            Train(), config, vocabulary_size=VOCABULARY, on_event=print, stop_seconds=9.0
        )

    start()
    (how,) = given
    # Of a cluster the head often has no GPU, and its memory is not that of the workers.
    assert how["device"] == ("cpu" if address is None else "auto")
    assert (how["address"], how["stop_seconds"]) == (address, 9.0)
    assert (how["log_folder"], how["on_event"]) == ("/shared/x/logs", print)
    monkeypatch.setattr(launching, "available_bytes", lambda: 0)
    if address is None:
        with pytest.raises(UserError, match=r"this machine has 0\.0 GiB available"):
            start()
    else:
        start()


def test_a_local_worker_s_log_and_events_go_where_the_run_s_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_gpu(monkeypatch)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "dist_embed.cluster.local.launch_local", lambda *_, **how: given.append(how)
    )
    config = config_from_dict(
        {"run": {"uri": "/shared/x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "cluster": {"num_workers": 3}}
    )  # fmt: skip
    launching.launch(Train(), config, vocabulary_size=VOCABULARY, on_event=print, launcher="local")
    (how,) = given
    assert (how["log_folder"], how["on_event"]) == ("/shared/x/logs", print)
    assert (how["num_workers"], how["device"]) == (3, "cpu")
    assert (how["stop_seconds"], how["save_seconds"]) == (0.0, 60.0)


@pytest.mark.parametrize("launcher", ["local", "ray"])
@pytest.mark.parametrize(("there", "workers"), [(1, 2), (3, 3), (64, 8)])
def test_who_uses_a_run_of_a_range_of_workers_needs_what_this_machine_has(
    monkeypatch: pytest.MonkeyPatch, launcher: str, there: int, workers: int
) -> None:
    given: list[int] = []
    for place, key in (
        ("local.launch_local", "num_workers"),
        ("ray_train.launch_ray", "min_workers"),
    ):
        monkeypatch.setattr(
            f"dist_embed.cluster.{place}", lambda *_, key=key, **how: given.append(how[key])
        )
    monkeypatch.setattr(launching, "available_bytes", lambda: 10**15)
    config = config_from_dict(
        {"run": {"uri": "/shared/x"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "cluster": {"num_workers": {"min": 2, "max": 8}, "launcher": launcher}}
    )  # fmt: skip

    def start(task: Task[Any]) -> None:
        launching.launch(task, config, vocabulary_size=VOCABULARY, on_event=print)

    without_gpu(monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(there))
    start(Evaluate("test"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: max(there, 2))
    start(Evaluate("test"))
    assert given == [workers, workers]
    without_gpu(monkeypatch)
    start(Train())
    assert given[2] == 8


def test_a_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 10**15)
    assert launch(monkeypatch, cluster={"num_workers": 2})
    with pytest.raises(UserError, match=r"num_workers=3 needs 3 GPUs .* this machine has 2$"):
        launch(monkeypatch, cluster={"num_workers": 3})


def test_paths_are_made_absolute_for_workers_that_stand_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir("/tmp")
    file = {"uri": "s3://bucket/v.npy", "words": "w.txt", "format": "npy"}
    config = config_from_dict(
        {"run": {"uri": "runs/x"}, "data": {"synthetic": {}, "uri": "data/"},
         "train": {"max_steps": 1}, "embedding": {"tables": {
             "source": {"freeze": True}, "output": {"pretrained": file},
             "target": {"pretrained": file}}}}
    )  # fmt: skip
    found = with_absolute_paths(config, on_cluster=False)
    assert (found.run.uri, found.data.uri) == ("/tmp/runs/x", "/tmp/data")
    for table in (found.embedding.tables.output, found.embedding.tables.target):
        assert table is not None
        assert table.pretrained is not None
        assert (table.pretrained.uri, table.pretrained.words) == (file["uri"], "/tmp/w.txt")
    shared = found.model_dump()
    shared["embedding"]["tables"]["target"] = shared["embedding"]["tables"]["output"] = None
    sound = config_from_dict(shared)
    assert with_absolute_paths(sound, on_cluster=True) == sound
    with pytest.raises(UserError, match=r"tables\.\w+\.pretrained\.words: 'w\.txt'"):
        with_absolute_paths(
            config.model_copy(update={"run": found.run, "data": found.data}), on_cluster=True
        )

"""Starting a task on the configured workers, after the checks that can be made beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from dist_embed.cluster.feed import Feed
from dist_embed.cluster.settings import MAX_FAILURES, LauncherChoice
from dist_embed.config.checks import check
from dist_embed.config.paths import run_name
from dist_embed.config.schema import Config
from dist_embed.embedding.memory import GIB
from dist_embed.embedding.settings import Tier
from dist_embed.errors import UserError
from dist_embed.installed import require
from dist_embed.observe.events import Event
from dist_embed.observe.quiet import worker_log
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.device import resolve_device, resolve_dtype
from dist_embed.parallel.machine import available_bytes, usable_cores
from dist_embed.parallel.torchrun import under_torchrun
from dist_embed.storage.uri import check_working_folder
from dist_embed.training.step_seconds import check_step
from dist_embed.training.tasks import Task
from dist_embed.training.worker import run_worker

R = TypeVar("R")


def launch(
    task: Task[R],
    config: Config,
    *,
    vocabulary_size: dict[str, int],
    word_tables: bool = False,
    on_event: Callable[[Event], None],
    launcher: LauncherChoice | None = None,
    stop_seconds: float = 0.0,
    feed: Feed | None = None,
) -> R:
    """Run ``task`` on the workers of ``config.cluster`` and return worker 0's result.

    Args:
        task: see `dist_embed.training.tasks`.
        config: the run's configuration.
        vocabulary_size: rows per side, for the memory check.
        word_tables: whether their words are tables on disk; likewise.
        on_event: takes what is to be shown.
        launcher: instead of ``config.cluster.launcher``.
        stop_seconds: how long a task gets to end by itself when a signal asks it to; 0: none.
        feed: of a task that asks for lines.

    Under ``torchrun`` (LOCAL_RANK and TORCHELASTIC_RUN_ID set) the process is a worker already and
    runs the task itself.

    Raises:
        UserError: more workers than the machine can hold, a step of the exact output layer that
            takes too long, no working folder, or an error of the user in a worker.
        RunFailed: a worker failed.
    """
    check_working_folder()  # again: preparation may have taken hours
    address = cluster_address(config, launcher)
    if address is None and not task.trains:
        config = _with_workers_there(config)
    cluster = config.cluster
    log_folder = str(worker_log(config.run.uri, 0, trains=task.trains).parent)

    if feed is not None:
        on_event = feed.taking(on_event)

    def arguments(device: str) -> tuple[Task[R], Config]:
        return task, _resolved(config, device)

    if task.trains and vocabulary_size:  # under torchrun worker 0 alone has it
        _check_step(config, vocabulary_size["target"], address)
    if under_torchrun():
        return run_worker(*arguments(resolve_device(cluster.device)), on_event)
    if address is None:
        _check_machine(task, config, vocabulary_size, word_tables, resolve_device(cluster.device))
    if cluster.chosen_launcher(launcher) == "local":
        from dist_embed.cluster.local import launch_local

        return launch_local(
            run_worker,
            arguments(resolve_device(cluster.device)),
            num_workers=cluster.max_workers,
            on_event=on_event,
            log_folder=log_folder,
            stop_seconds=stop_seconds,
            save_seconds=config.checkpoint.drain_seconds if task.trains else 0.0,
            device=resolve_device(cluster.device),
            feed=feed,
        )
    with collector_off():
        require("ray")
        from dist_embed.cluster.ray_train import launch_ray

    return launch_ray(
        run_worker,
        arguments,
        name=run_name(config.run.uri),
        # Here nothing comes or goes.
        min_workers=cluster.min_workers if address else cluster.max_workers,
        max_workers=cluster.max_workers,
        address=address,
        # The workers' device, not this machine's: a cluster's head often has no GPU.
        device=cluster.device if address else resolve_device(cluster.device),
        timeout_seconds=cluster.timeout_seconds,
        replace_seconds=cluster.replace_seconds,
        max_failures=MAX_FAILURES if cluster.max_failures is None else cluster.max_failures,
        on_event=on_event,
        log_folder=log_folder,
        stop_seconds=stop_seconds,
        feed=feed,
    )


def _resolved(config: Config, device: str) -> Config:
    """For workers of one kind of device."""
    on_device = config.cluster.model_copy(update={"device": device})
    resolved = config.model_copy(update={"cluster": on_device})
    check(resolved)  # what `auto` has become may be too little for other settings
    return resolved


def cluster_address(config: Config, launcher: LauncherChoice | None = None) -> str | None:
    """The Ray cluster that a task would run on; None: this machine.

    Raises UserError for the address of a job server, and for that of a server of Ray's client.
    """
    if config.cluster.chosen_launcher(launcher) == "local" or under_torchrun():
        return None
    given, name = config.cluster.address, "cluster.address"
    if not given:
        given, name = os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS"
    if given and given.startswith(("http://", "https://")):  # which Ray (2.60) refuses, too
        raise UserError(
            f"{name}: {given!r} is not allowed: it is where a job server answers, to which "
            "`dist-embed submit` sends a run; workers are started at HOST:PORT or auto, and "
            "with cluster.launcher=local on this machine, whatever is set"
        )
    if given and given.startswith("ray://"):
        raise UserError(
            f"{name}: {given!r} is not allowed: through Ray's client one sees too little of a "
            "cluster to look after workers. On a machine of the cluster give HOST:PORT or auto; "
            "from elsewhere `dist-embed submit` sends the run"
        )
    return given


def _with_workers_there(config: Config) -> Config:
    """A range of workers becomes as many as this machine has GPUs or cores, within it: who uses a
    trained run need not have the room that its training had.
    """
    cluster = config.cluster
    if isinstance(cluster.num_workers, int):
        return config
    on_gpus = resolve_device(cluster.device) == "cuda"
    there = torch.cuda.device_count() if on_gpus else usable_cores()
    workers = max(cluster.min_workers, min(there, cluster.max_workers))
    return config.model_copy(
        update={"cluster": cluster.model_copy(update={"num_workers": workers})}
    )


def _check_step(config: Config, num_words: int, address: str | None) -> None:
    """Refuse a step that takes too long on this machine, or on the cluster's GPUs.

    What a cluster's CPUs are is not known here.
    """
    cluster = config.cluster
    if address is not None:
        if cluster.device != "cpu":
            check_step(config, num_words, cluster.min_workers, "cuda")  # then it takes longest
        return
    workers = int(os.environ["WORLD_SIZE"]) if under_torchrun() else cluster.max_workers
    check_step(config, num_words, workers, resolve_device(cluster.device))


def _check_machine(
    task: Task[R], config: Config, vocabulary_size: dict[str, int], word_tables: bool, device: str
) -> None:
    """Refuse more workers than this machine can hold, saying what is needed and what there is."""
    workers, memory = config.cluster.max_workers, config.embedding.memory
    cluster = config.cluster.model_copy(update={"num_workers": workers})
    config = config.model_copy(update={"cluster": cluster})
    tier: Tier | None = None
    if device == "cuda":
        if workers > torch.cuda.device_count():
            raise UserError(
                f"cluster.num_workers={workers} needs {workers} GPUs (one per worker); "
                f"this machine has {torch.cuda.device_count()}"
            )
        tier = "device" if memory == "auto" else memory  # what `auto` needs at least
    # With a GPU the products are in its memory: it is not asked here, which would take some of it.
    on_cpu = torch.device("cpu")
    narrow = device == "cpu" and resolve_dtype(config.train.precision, on_cpu) != torch.float32
    each = task.host_bytes(
        config, vocabulary_size, narrow_products=narrow, tier=tier, word_tables=word_tables
    )
    there = available_bytes()
    if workers * each > there:
        raise UserError(
            f"cluster.num_workers={workers} needs about {workers * each / GIB:.1f} GiB of memory "
            f"({each / GIB:.2f} GiB per worker); this machine has {there / GIB:.1f} GiB available. "
            "Use fewer workers, a smaller vocabulary, embedding.width or model.logits_block_mib "
            f"({_block_size(config)}), model.output=sampled, "
            "checkpoint.saving=in_place, or a cluster (cluster.address)"
        )


def _block_size(config: Config) -> str:
    size = config.model.logits_block_mib
    return "auto" if size == "auto" else f"{size:g} MiB"

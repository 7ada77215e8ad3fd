"""Where data are prepared: on the Ray cluster of a configuration, or on this machine."""

from __future__ import annotations

from functools import partial

from dist_embed.cluster.settings import LauncherChoice
from dist_embed.config.schema import Config
from dist_embed.data.executor import ExecutorAt
from dist_embed.installed import require


def executor_of(
    config: Config, launcher: LauncherChoice | None = None, *, trains: bool = False
) -> ExecutorAt | None:
    """What begins to prepare the data of ``config``; None: processes of this machine.

    Args:
        config: whose cluster is used, if it has one.
        launcher: instead of ``config.cluster.launcher``.
        trains: whether the workers of ``config`` train on them there: then a cluster that is too
            small for these is refused before data are prepared for hours.
    """
    if config.cluster.chosen_launcher(launcher) == "local":
        return None
    from dist_embed.cluster.launch import cluster_address  # imports PyTorch

    address = cluster_address(config, launcher)
    if address is None:
        return None
    require("ray")
    from dist_embed.cluster.ray_tasks import ray_tasks

    return partial(
        ray_tasks, address=address, num_tasks=config.data.num_processes,
        timeout_seconds=config.cluster.timeout_seconds,
        slots=(config.cluster.min_workers, config.cluster.device) if trains else None,
    )  # fmt: skip

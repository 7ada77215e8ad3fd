"""`dist_embed.prepare`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dist_embed.api.given import config_given, on_event_given
from dist_embed.arguments import true_or_false
from dist_embed.config.paths import with_absolute_paths
from dist_embed.config.schema import Config
from dist_embed.data.token_shards import PreparedData
from dist_embed.observe.events import Event, shown_by, watched_by
from dist_embed.observe.quiet import quiet_environment


def prepare(
    config: Config,
    *,
    force: bool = False,
    renew: bool = True,
    on_event: Callable[[Event], None] | None = None,
) -> PreparedData:
    """Prepare the data of a configuration, or find them prepared.

    `train` does so by itself; prepared beforehand, a job need not wait for it. Where the
    configuration names a Ray cluster, tasks there do it.

    Args:
        config: of the run.
        force: prepare again what is there.
        renew: prepare again what was prepared from other files; otherwise they are refused.
        on_event: takes what is to be shown, see `observe.events`; by default it is printed.

    Returns what the data's index says: vocabulary sizes by side, the sentences of each split, the
    folder.

    Raises:
        UserError: no configuration; corpora that cannot be read; data there that are of other
            settings, or with ``renew=False`` of other files.
        RunFailed: a process was ended from outside; or the cluster has lost tasks, or has had no
            room for them.
    """
    on_event_given(on_event)
    true_or_false("force", force)
    true_or_false("renew", renew)
    from dist_embed.cluster.preparing import executor_of
    from dist_embed.data.preparation import ensure_data

    config = config_given(config)
    executor_at = executor_of(config)
    config = with_absolute_paths(config, on_cluster=executor_at is not None)
    with quiet_environment(), shown_by(on_event, sys.stdout) as show:
        return ensure_data(
            config, lambda text: show({"kind": "line", "text": text}), force=force, renew=renew,
            executor_at=executor_at, watch=watched_by(show),
        )  # fmt: skip

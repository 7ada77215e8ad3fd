"""What a job is given to run: the resolved configuration, as it holds there."""

from __future__ import annotations

import math
from typing import Any

from dist_embed.cluster.stopping import stop_seconds
from dist_embed.config.load import config_to_yaml
from dist_embed.config.schema import Config
from dist_embed.errors import UserError

# Beyond the time that workers get to stop the command needs this to end them, and to say so.
END_SECONDS = 60


def configuration(config: Config, *, target: str, most_bytes: int, **cluster: Any) -> str:
    """As YAML. Where the job runs is the cluster that it was sent to: it has no address.

    Args:
        config: the sender's.
        target: the kind of cluster, for the error.
        most_bytes: that can be sent there.
        **cluster: values of its section that differ there.

    Raises UserError where the text is too long.
    """
    there = config.cluster.model_copy(update={"address": None, **cluster})
    text = config_to_yaml(config.model_copy(update={"cluster": there}))
    if len(text.encode()) > most_bytes:
        raise UserError(
            f"a configuration of {len(text.encode()):,} bytes cannot be sent to {target}; at most "
            f"{most_bytes:,}: name files by a pattern"
        )
    return text


def whole_stop_seconds(config: Config) -> int:
    """What a cluster has to leave a run from its request to stop to its end."""
    return math.ceil(stop_seconds(config)) + END_SECONDS

"""How long a training gets to end by itself. Without PyTorch, for those who only send jobs."""

from __future__ import annotations

from dist_embed.config.schema import Config

# What a step, or a validation, may still take after the run was asked to stop.
STEP_SECONDS = 60.0


def stop_seconds(config: Config) -> float:
    """How long a training gets to end by itself when it is asked to stop."""
    return 2 * config.checkpoint.drain_seconds + STEP_SECONDS

"""What the process from which workers are forked imports for them."""

from __future__ import annotations

from dist_embed.parallel.collector import collector_off

with collector_off(freeze=True):
    import dist_embed.training.inference
    import dist_embed.training.train  # noqa: F401

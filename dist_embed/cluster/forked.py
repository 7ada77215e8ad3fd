"""What the process from which workers are forked imports for them."""

from __future__ import annotations

from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.safe_path import leave_out_working_folder

leave_out_working_folder()
with collector_off(freeze=True):
    import dist_embed.training.inference
    import dist_embed.training.train  # noqa: F401

"""Whether this process is a worker that torchrun has started. Imports nothing that takes time."""

from __future__ import annotations

import os


def under_torchrun() -> bool:
    """Whether this process was started by torchrun and is a worker itself."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ


def is_first_process() -> bool:
    """Whether this process does what one does for all before workers meet: any but torchrun's
    later ones.
    """
    return not under_torchrun() or os.environ["RANK"] == "0"

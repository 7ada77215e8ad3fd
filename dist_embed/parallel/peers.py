"""Whether the workers of a run outlive the first of them that ends by an error."""

from __future__ import annotations

import os

# Set in a worker whose launcher gives the others time to finish a save.
_OUTLIVE = "DIST_EMBED_PEERS_OUTLIVE"


def peers_have_time() -> dict[str, str]:
    """What a launcher adds to the environment of workers that it does not end for another's end."""
    return {_OUTLIVE: "1"}


def peers_end_with_this_worker() -> bool:
    """Whether the others are ended soon after this worker has ended by an error, as far as it is
    told: torchrun, Slurm, Ray Train and ``torch.multiprocessing`` do that.
    """
    return _OUTLIVE not in os.environ

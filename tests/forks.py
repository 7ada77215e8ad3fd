"""The server from which tests fork processes.

There is one in a process, and its first start decides what it has imported; what is missing every
child imports anew.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

IMPORTED = [
    "torch", "torchrec", "fbgemm_gpu", "torch.profiler", "pandas", "pyarrow.parquet",
    "s3fs", "aiobotocore.session", "pytest",
    "dist_embed.training.train", "dist_embed.training.inference",
    "tests.distributed.tiny", "tests.stores.killing", "tests.stores.test_hostile",
]  # fmt: skip


def forking() -> ForkServerContext:
    """How tests start processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context

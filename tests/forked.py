"""What processes have imported that tests fork; what is missing here each of them imports anew.

The garbage collector does not look for any among it: not while it grows, of which it takes 40 %,
nor later, in every fork, whose pages that would copy.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from dist_embed.parallel.collector import collector_off

_NAMES = [
    "torch", "torchrec", "fbgemm_gpu", "torch.profiler", "pandas", "pyarrow.parquet",
    "s3fs", "aiobotocore.session", "pytest",
    "dist_embed.training.train", "dist_embed.training.inference",
    "tests.distributed.tiny", "tests.stores.killing", "tests.stores.test_hostile",
]  # fmt: skip

with collector_off(freeze=True):
    for _name in _NAMES:
        with suppress(ImportError):
            import_module(_name)

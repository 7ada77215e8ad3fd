"""Word embeddings whose tables are too large for one device: trained, looked at, and used in models
of one's own. docs/library.md shows how.

Nothing is imported before it is used.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_embed.api.data import prepare
    from dist_embed.api.inference import evaluate, translate
    from dist_embed.api.trained_run import open_run
    from dist_embed.api.training import train
    from dist_embed.checkpoint.of_tables import Checkpoints
    from dist_embed.config.load import load_config
    from dist_embed.config.schema import Config
    from dist_embed.embedding.sharded_tables import ShardedTables, Table
    from dist_embed.errors import UserError
    from dist_embed.parallel.group import joined_group

    __version__: str

# FBGEMM 1.8 warns of kernels that a build lacks, as it is imported: with `python -W error` none
# could be. What is said of the user's own code stays as Python was told.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(fbgemm_gpu|torchrec)\b")

__all__ = [
    "Checkpoints",
    "Config",
    "ShardedTables",
    "Table",
    "UserError",
    "__version__",
    "evaluate",
    "joined_group",
    "load_config",
    "open_run",
    "prepare",
    "train",
    "translate",
]
_MODULE_OF = {
    "Checkpoints": "checkpoint.of_tables",
    "Config": "config.schema",
    "ShardedTables": "embedding.sharded_tables",
    "Table": "embedding.sharded_tables",
    "UserError": "errors",
    "evaluate": "api.inference",
    "joined_group": "parallel.group",
    "load_config": "config.load",
    "open_run": "api.trained_run",
    "prepare": "api.data",
    "train": "api.training",
    "translate": "api.inference",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("dist_embed")
    elif name in _MODULE_OF:
        from importlib import import_module

        from dist_embed.installed import missing_package

        try:
            if name != "UserError":  # by which what follows is caught
                from dist_embed.storage.uri import check_working_folder

                check_working_folder()
            value = getattr(import_module(f"dist_embed.{_MODULE_OF[name]}"), name)
        except ImportError as exc:
            if (missing := missing_package(exc)) is None:
                raise
            raise missing from None
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What is to be used: neither what is imported here for itself nor the packages inside."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

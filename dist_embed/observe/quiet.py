"""What libraries are told through the environment, and where their noise goes: the run's log."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

from dist_embed.storage import uri as storage

# Read by the libraries when they are first imported or started.
_ENVIRONMENT = {
    # Not noise, but the same kind of setting: workers run at the priority that plain processes
    # have (Ray's default is niceness 15), in the folder they were started from.
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # oneDNN keeps compiled kernels by shape; 1024 of them, its default, take 2 GiB in a bf16 run.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "RAY_USAGE_STATS_ENABLED": "0",  # reports to the vendor are on by default
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning on machines without GPUs
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}


def quiet_environment() -> None:
    """Set what libraries read from the environment; call before importing them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def redirect_output(log_file: Path) -> None:
    """Send this process's stdout and stderr, native code's too, to the end of ``log_file``.

    For worker processes: what the user is to see goes through a `Reporter`.
    """
    # Under torchrun this may be what makes the run's folder.
    storage.make_folder(log_file.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        stream=os.fdopen(2, "w", buffering=1, closefd=False),
        force=True,
    )
    logging.captureWarnings(True)


def worker_log_folder(run_uri: str) -> Path:
    """Where the workers of a run write their logs: in its folder, or for a run at a URL in a
    folder of each worker's machine.
    """
    if storage.is_local(run_uri):
        return storage.local_path(storage.join(run_uri, "logs"))
    name = hashlib.sha256(run_uri.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"dist_embed-{os.getuid()}" / name


def quiet_screen() -> None:
    """For the process that owns the screen: only errors of third parties are shown."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    warnings.simplefilter("ignore")

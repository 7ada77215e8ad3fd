"""What libraries are told through the environment, and where their noise goes: the run's log."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.local_file import regular_itself
from dist_embed.storage.temporary import system_folder
from dist_embed.streams import Forgiving

# Read by the libraries when they are first imported or started.
_ENVIRONMENT = {
    # Not noise, but the same kind of setting: workers run at the priority that plain processes
    # have (Ray's default is niceness 15), in the folder they were started from.
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Of a Ray of our own: after 60 s, its default, a process that a busy machine has not let import
    # Ray yet is ended, and another one begins anew (2.60).
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # by default a lost worker is noticed within 2 s
    # A process of each start that tells of nodes about to go, as `Outlook` does (Ray Train 2.60).
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # oneDNN keeps compiled kernels by shape; 1024 of them, its default, take 2 GiB in a bf16 run.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "RAY_USAGE_STATS_ENABLED": "0",  # reports to the vendor are on by default
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning on machines without GPUs
    # Without a name server torch warns of each worker that comes to the launcher's store (2.13,
    # socket.cpp).
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
# By Ray 2.60 (worker.py) and tensorboardX (crc32c.py).
_CHANGED_BY_LIBRARIES = ("PYTHONBREAKPOINT", "CRC32C_SW_MODE")


@contextmanager
def quiet_environment() -> Iterator[None]:
    """What libraries read from the environment, for a ``with`` block around their import; what
    starts in it keeps that. Behind it the environment is as before, also where a library has
    changed it. What a user has set stays as it is, and what is renewed meanwhile, as credentials.
    """
    with environment_kept((*_ENVIRONMENT, *_CHANGED_BY_LIBRARIES)):
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        yield


@contextmanager
def environment_kept(names: Iterable[str]) -> Iterator[None]:
    """Behind the block these variables of the environment are what they were before it."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def redirect_output(log_file: Path) -> None:
    """Send this process's stdout and stderr, native code's too, to the end of ``log_file``.

    For worker processes: what the user is to see goes through a `Reporter`. Raises as `open_log`.
    """
    handle = open_log(log_file)
    for stream in (sys.stdout, sys.stderr):
        Forgiving(stream).flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if handle > 2:  # else it was one of them that had been closed
        os.close(handle)
    log = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        stream=log,
        force=True,
    )
    logging.captureWarnings(True)
    _LOGS.append(log_file)
    _log_what_goes_to_the_screen(log)


def _log_what_goes_to_the_screen(log: IO[str]) -> None:
    """PyTorch's handlers have what sys.stderr was at its import: under torchrun the screen."""
    for logger in logging.root.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(log)


def worker_log(run_uri: str, rank: int, *, trains: bool) -> Path:
    """Where a worker of a run writes its log: in the run's folder, or in one of its own machine for
    a run at a URL, or one that it only reads and that takes no log: another user's, on a read-only
    disk, or with something else in the log's place.
    """
    name = f"worker-{rank}.log"
    if storage.is_local(run_uri):
        log = storage.local_path(storage.join(run_uri, "logs")) / name
        if trains or _takes_more(log):
            return log
    return private_log_folder(hashlib.sha256(run_uri.encode()).hexdigest()[:12]) / name


def _takes_more(log: Path) -> bool:
    if os.path.lexists(log):
        return not log.is_symlink() and log.is_file() and os.access(log, os.W_OK)
    there = log.parent if log.parent.exists() else log.parent.parent
    return os.access(there, os.W_OK | os.X_OK)


def private_log_folder(name: str) -> Path:
    """Where logs of that name lie that belong to no folder of a run; `open_log` makes it."""
    return _private_folder() / name


def _private_folder() -> Path:
    return Path(system_folder()) / f"dist_embed-{os.getuid()}"


def open_log(log_file: Path) -> int:
    """Open a log to write at its end; its folder is made where it is missing. Returns the handle.

    Among the system's temporary files another user may have made what has such a name, or a link
    that leads to a file of ours. A `private_log_folder` and what lies in it are therefore opened
    without following links, must be this user's, and the folders are closed to everybody else.

    In a run's folder a link may stand for the folder of logs, as its user wants it, not for a log.

    Raises:
        UserError: they are not this user's alone.
        OSError: it cannot be opened, or is a link or no regular file; with its name.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    if log_file.parent.parent != _private_folder():
        # Under torchrun this may be what makes the run's folder.
        storage.make_folder(log_file.parent)
        return regular_itself(log_file, flags)
    path = log_file.parent.parent.parent
    with ExitStack() as opened:
        try:
            above = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, above)
            for path in (log_file.parent.parent, log_file.parent):
                with suppress(FileExistsError):
                    os.mkdir(path.name, 0o700, dir_fd=above)
                folder = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                above = os.open(path.name, folder, dir_fd=above)
                opened.callback(os.close, above)
                if os.fstat(above).st_uid != os.geteuid():
                    raise _taken(path)
                os.fchmod(above, 0o700)  # earlier versions left it to the umask
            path = log_file
            # A named pipe would block.
            flags |= os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(path.name, flags, 0o600, dir_fd=above)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EACCES):
                raise _taken(path) from None
            raise OSError(exc.errno, exc.strerror, str(path)) from exc
    found = os.fstat(handle)
    # Nor a second name of a file that lies elsewhere.
    if (found.st_uid, found.st_nlink) != (os.geteuid(), 1):
        os.close(handle)
        raise _taken(path)
    return handle


def _taken(path: Path) -> UserError:
    return UserError(
        f"logs would be written to {path}, which is a link, or not what only this user has made: "
        "remove it, or let the environment variable TMPDIR name another folder of temporary files"
    )


_LOGS: list[Path] = []  # to which this process's output goes


def quiet_tables() -> None:
    """Before tables are made: what FBGEMM has PyTorch say of tracing is for a log alone.

    By the logger that says it, for PyTorch's handlers are its user's (torch 2.13,
    fx/_symbolic_trace.py).
    """
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_to_be_told)


def _is_to_be_told(record: logging.LogRecord) -> bool:
    return bool(_LOGS) or not record.getMessage().startswith("is_fx_tracing will return true")


def quiet_screen() -> None:
    """For the process that owns the screen: only errors of third parties are shown."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    warnings.simplefilter("ignore")

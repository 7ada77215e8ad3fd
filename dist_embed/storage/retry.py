"""Calls on an object store, repeated while the store fails, up to a time limit."""

from __future__ import annotations

import random
import time
from asyncio import CancelledError
from collections.abc import Callable
from typing import TypeVar

from dist_embed.errors import StorageError, StoreUnavailable

T = TypeVar("T")

RETRY_SECONDS = 120.0
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0

# What repeating does not change.
_FINAL = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError,
)  # fmt: skip
# Packages whose exceptions come from talking to a store; not all of them are OSErrors.
_CLIENTS = {
    "botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "azure", "google", "requests",
    "urllib3", "asyncio", "concurrent", "fsspec",
}  # fmt: skip
_MISCONFIGURED = {
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError",
    "TokenRetrievalError", "InvalidRegionError", "ParamValidationError",
}  # fmt: skip


def retried(what: str, where: str, operation: Callable[[], T], seconds: float = RETRY_SECONDS) -> T:
    """``operation()``, repeated with growing pauses for ``seconds`` while the store fails.

    Args:
        what: for the message, such as ``read x``.
        where: the store's URI, for the message.
        operation: may be carried out more than once.
        seconds: limit; a try under way is not interrupted.

    Raises:
        StoreUnavailable: it failed to the end.
        StorageError: credentials or settings are missing.
        FileNotFoundError, FileExistsError, PermissionError: what the store answered.
    """
    give_up_at = time.monotonic() + seconds
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return operation()
        except _FINAL:
            raise
        except (Exception, CancelledError) as exc:  # a client's, as its event loop ends
            if not _comes_from_the_store(exc):
                raise
            if type(exc).__name__ in _MISCONFIGURED:
                raise StorageError(f"cannot {what} in {where}: {exc}") from exc
            if time.monotonic() + wait > give_up_at:
                raise StoreUnavailable(
                    f"could not {what} in {where} within {seconds:.0f} s; "
                    f"the last error: {type(exc).__name__}: {exc}"
                ) from exc
        # Spread out: thousands of workers meet the same 503.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def _comes_from_the_store(exc: BaseException) -> bool:
    return isinstance(exc, (OSError, TimeoutError)) or any(
        kind.__module__.split(".")[0] in _CLIENTS for kind in type(exc).__mro__
    )

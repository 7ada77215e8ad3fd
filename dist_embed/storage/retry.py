"""Calls on an object store, repeated while the store fails, up to a time limit."""

from __future__ import annotations

import random
import sys
import time
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

from dist_embed.errors import StorageError, StoreUnavailable, causes, in_a_line

T = TypeVar("T")

RETRY_SECONDS = 120.0
_seconds: ContextVar[float] = ContextVar("retry_seconds", default=RETRY_SECONDS)
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0

# What repeating does not change, and callers ask for.
ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
# HTTP's statuses of which the same holds, which nobody asks for. Not 400, for S3's time-outs and
# bodies that were cut are among its; nor those of a store that is busy or changing.
_REFUSALS = {401, 402, 403, 404, 405, 407, 410, 413, 414, 451, 501, 505, 507}
# S3's error codes of which it holds, with a status that does not tell: 400 or 301.
_REFUSING_CODES = {
    "InvalidToken", "AuthorizationHeaderMalformed", "PermanentRedirect", "InvalidBucketName",
}  # fmt: skip
# Packages whose exceptions come from talking to a store; not all of them are OSErrors.
_CLIENTS = {
    "botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "azure", "google", "requests",
    "urllib3", "asyncio", "concurrent", "fsspec", "paramiko", "webdav4", "httpx", "httpcore",
    "yarl",
}  # fmt: skip
_MISCONFIGURED = {
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError",
    "TokenRetrievalError", "InvalidRegionError", "ParamValidationError", "DefaultCredentialsError",
    "ClientAuthenticationError", "AzureSigningError", "AuthenticationException",
    "BadHostKeyException", "ForbiddenOperation",
}  # fmt: skip
# Of these, what a renewal of credentials that has failed once looks like.
_CREDENTIALS = {"NoCredentialsError", "ClientAuthenticationError"}
CREDENTIAL_SECONDS = 8.0


@contextmanager
def retrying_for(seconds: float) -> Iterator[None]:
    """Calls of this thread in the block are repeated for so long, where they do not say how long.
    Those of threads that it starts are not among them.
    """
    before = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(before)


def retried(what: str, where: str, operation: Callable[[], T], seconds: float | None = None) -> T:
    """``operation()``, repeated with growing pauses for ``seconds`` while the store fails; once
    at least, unless that is 0: a try may take longer.

    Args:
        what: for the message, such as ``read`` or ``read x in``.
        where: the store's URI, for the message.
        operation: may be carried out more than once.
        seconds: limit; a try under way is not interrupted. None: as `retrying_for` says, else
            `RETRY_SECONDS`.

    Raises:
        StoreUnavailable: it failed to the end.
        StorageError: the store refuses it, or settings are missing; after `CREDENTIAL_SECONDS` at
            the most, where what it refuses may be credentials about to be renewed.
        FileNotFoundError, FileExistsError, …: what the store answered.
    """
    seconds = _seconds.get() if seconds is None else seconds
    started = time.monotonic()
    wait = FIRST_WAIT_SECONDS
    tries = 0
    while True:
        tries += 1
        try:
            return operation()
        except ANSWERS:
            raise
        except (Exception, CancelledError) as exc:  # a client's, as its event loop ends
            if not comes_from_the_store(exc):
                if _is_of_a_client(exc):
                    raise StorageError(f"cannot {what} {where}: {in_a_line(exc)}") from exc
                raise
            late = time.monotonic() + wait - started
            if is_refusal(exc) and not (
                _may_be_renewed(exc) and late <= min(seconds, CREDENTIAL_SECONDS)
            ):
                raise StorageError(f"cannot {what} {where}: {in_a_line(exc)}") from exc
            if late > seconds and (tries > 1 or not seconds):
                raise StoreUnavailable(
                    f"could not {what} {where} within {seconds:.0f} s; "
                    f"the last error: {in_a_line(exc)}"
                ) from exc
        # Spread out: thousands of workers meet the same 503.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def status_of(exc: BaseException) -> int | None:
    """The status of HTTP that a client's error stands for; None where it does not tell."""
    for name in ("status_code", "status", "code"):
        with suppress(TypeError, ValueError):
            return int(getattr(exc, name, None))  # type: ignore[arg-type]
    reply = getattr(exc, "response", None)
    if isinstance(reply, dict):  # botocore's
        return reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # s3fs and gcsfs make errors of the system's kinds of them.
    if exc.__cause__ is not None and exc.__cause__ is not exc:
        return status_of(exc.__cause__)
    return 403 if str(exc).startswith("Forbidden: ") else None


def is_refusal(exc: BaseException) -> bool:
    """Whether a store's error is one that repeating does not change."""
    kinds = {kind.__name__ for kind in type(exc).__mro__}
    return (
        isinstance(exc, PermissionError)
        or bool(kinds & _MISCONFIGURED)
        or status_of(exc) in _REFUSALS
        or _code_of_s3(exc) in _REFUSING_CODES
    )


def _code_of_s3(exc: BaseException) -> str | None:
    """The error code in a reply of S3."""
    replies = (getattr(one, "response", None) for one in causes(exc))
    first = next((reply for reply in replies if isinstance(reply, dict)), {})
    code: str | None = first.get("Error", {}).get("Code")
    return code


def denies(exc: BaseException | None) -> bool:
    """Whether a store's error says that this is not allowed to whoever asks."""
    return isinstance(exc, PermissionError) or (exc is not None and status_of(exc) in (401, 403))


def _may_be_renewed(exc: BaseException) -> bool:
    """Whether a refusal may be of credentials whose renewal has failed."""
    kinds = {kind.__name__ for kind in type(exc).__mro__}
    if kinds & _CREDENTIALS:
        return status_of(exc) != 403  # a key that the store itself refuses
    # gcsfs's, of a token that has run out.
    return status_of(exc) == 401 and "Invalid Credentials" in str(exc)


def _is_of_a_client(exc: BaseException) -> bool:
    """Whether a client could do nothing with what it was asked: an address that is none, a write to
    what can only be read. Such errors are Python's own, and tell by where they were raised.
    """
    kinds = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
    if not isinstance(exc, kinds):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").split(".")[0] for frame in frames]
    outside = [name for name in packages if name not in sys.stdlib_module_names]
    return bool(outside) and outside[-1] in _CLIENTS


def comes_from_the_store(exc: BaseException) -> bool:
    """Whether an error is a store's or its client's, and none of this program."""
    # EOFError is paramiko's, of a server that goes while one connects (5.1, transport.py).
    return isinstance(exc, (OSError, EOFError, StoreUnavailable)) or any(
        kind.__module__.split(".")[0] in _CLIENTS for kind in type(exc).__mro__
    )

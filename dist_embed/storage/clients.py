"""The clients of stores, as they are wanted here: none keeps listings, or repeats calls where its
caller does, and each waits for an answer within limits. fsspec has no common names for that.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from dist_embed.errors import StorageError
from dist_embed.installed import missing_package
from dist_embed.passwords import password_in

CONNECT_SECONDS = 10
READ_SECONDS = 60

# Checksums in headers that S3-compatible servers lack or get wrong in replies to ranged reads; what
# must be proven here carries SHA-256 of its own.
_S3_CONFIG: dict[str, Any] = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "connect_timeout": CONNECT_SECONDS,
    "read_timeout": READ_SECONDS,
}
_SAME_CLIENT = {
    "s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "ssh": "sftp", "dav": "webdav",
}  # fmt: skip
# They write of errors that the caller tells, with tracebacks (gcsfs 221 lines): for logs alone.
_TALKATIVE = ("gcsfs", "azure", "paramiko")


def filesystem(uri: str, *, retries: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of ``uri`` and the path in it.

    Without ``retries`` its client tries every request once: for callers that repeat calls
    themselves, and whose limit its tries would stretch. Raises StorageError.
    """
    if wrong := password_in(uri):
        raise StorageError(wrong)
    protocols = [part.partition("://")[0] for part in uri.split("::") if "://" in part]
    clients = {protocol: _SAME_CLIENT.get(protocol, protocol) for protocol in protocols}
    options = {protocol: _options(client, retries) for protocol, client in clients.items()}
    for name in _TALKATIVE:
        _keep_from_screen(logging.getLogger(name))
    try:
        fs, path = url_to_fs(uri, **{key: given for key, given in options.items() if given})
    except (ImportError, ValueError) as exc:
        raise StorageError(f"cannot open {uri!r}: {missing_package(exc) or exc}") from exc
    except OSError as exc:
        raise StorageError(f"cannot open {uri!r}: {exc}") from exc
    if len(protocols) == 1 and not retries:
        _try_once(clients[protocols[0]], fs)
    return fs, path


def _keep_from_screen(logger: logging.Logger) -> None:
    if not logger.handlers:  # without any the logging module writes to standard error by itself
        logger.addHandler(logging.NullHandler())


def _options(client: str, retries: bool) -> dict[str, Any]:
    """What a client is told when it is made."""
    if client == "s3":
        config = dict(_S3_CONFIG)
        if not retries:
            config["retries"] = {"total_max_attempts": 1}
        return {"use_listings_cache": False, "config_kwargs": config}
    if client in ("gs", "abfs"):
        options: dict[str, Any] = {"use_listings_cache": False}
        if not retries:
            # fsspec makes one client for each set of options. This one says nothing where listings
            # are not kept: it tells the two clients apart.
            options["listings_expiry_time"] = 1
        if client == "gs":
            import aiohttp

            limits = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            # Else five minutes; and one for each look at what kind of bucket it is.
            return options | {"requests_timeout": limits, "retry_timeout": CONNECT_SECONDS}
        return options | {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    if client == "webdav" and not retries:
        return {"retry": False}
    return {"timeout": CONNECT_SECONDS} if client == "sftp" else {}


def _try_once(client: str, fs: Any) -> None:
    """Turn off what no option does: s3fs's own tries; gcsfs's six, over half a minute, 401 among
    them (2026.10, retry.py); those of Azure's library, over a minute (12.31, policies.py).
    """
    if client == "s3":
        fs.retries = 1
    elif client == "gs":
        fs._request = MethodType(type(fs)._request.__wrapped__, fs)
    elif client == "abfs":
        fs.service_client._config.retry_policy.total_retries = 0

"""The clients of stores, as they are wanted here: none keeps listings, or repeats calls where its
caller does, and each waits for an answer within limits. fsspec has no common names for that.
"""

from __future__ import annotations

import gzip
import logging
import lzma
import tarfile
import zipfile
import zlib
from types import MethodType
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from dist_embed.errors import StorageError, StoreUnavailable, in_a_line
from dist_embed.installed import missing_package
from dist_embed.passwords import password_in
from dist_embed.storage.retry import ANSWERS, comes_from_the_store, is_refusal

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
# What opening an archive says of one that is none, or is cut short.
_NO_ARCHIVE = (
    EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
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
    if uri.startswith("tar://") and uri.endswith(".tgz"):  # an ending that fsspec does not know
        options["tar"] = {"compression": "gzip"}
    for name in _TALKATIVE:
        _keep_from_screen(logging.getLogger(name))
    client = clients[protocols[0]] if len(protocols) == 1 else ""
    try:
        if client in ("http", "https"):
            urlsplit(uri)  # a ValueError, of an address that aiohttp would not take later
        fs, path = url_to_fs(uri, **{key: given for key, given in options.items() if given})
        if client == "sftp":
            _bound_sftp(fs)
    except (ImportError, ValueError, TypeError) as exc:  # or what fsspec is told of it is wrong
        raise StorageError(f"cannot open {uri!r}: {missing_package(exc) or exc}") from exc
    except Exception as exc:  # as of ssh, which connects here
        # Of sftp, EOFError is a server's that goes, see `comes_from_the_store`.
        may_be_server = isinstance(exc, EOFError) and "sftp" in clients.values()
        is_damaged = "::" in uri and isinstance(exc, _NO_ARCHIVE) and not may_be_server
        if not (is_damaged or comes_from_the_store(exc)):
            raise
        if isinstance(exc, FileNotFoundError) and client != "sftp":  # of an archive
            raise
        # A key's file that is not there is refused as a wrong one is.
        final = is_damaged or is_refusal(exc) or isinstance(exc, ANSWERS)
        error_type = StorageError if final else StoreUnavailable
        raise error_type(f"cannot open {uri!r}: {in_a_line(exc)}") from exc
    if not retries:
        _try_once(client, fs)
    return fs, path


def _keep_from_screen(logger: logging.Logger) -> None:
    if not logger.handlers:  # without any the logging module writes to standard error by itself
        logger.addHandler(logging.NullHandler())


def _options(client: str, retries: bool) -> dict[str, Any]:
    """What a client is told when it is made."""
    options: dict[str, Any]
    if client == "s3":
        config = dict(_S3_CONFIG)
        if not retries:
            config["retries"] = {"total_max_attempts": 1}
        return {"use_listings_cache": False, "config_kwargs": config}
    if client in ("gs", "abfs"):
        options = {"use_listings_cache": False}
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
    if client == "webdav":
        # To connect, of a read, of a write, until a connection is free: else 5 s each.
        options = {"timeout": (CONNECT_SECONDS, READ_SECONDS, READ_SECONDS, READ_SECONDS)}
        if not retries:
            options["retry"] = False
        # JSON, in fsspec's configuration and in the environment, has no pairs as httpx asks for.
        auth = fsspec.config.conf.get("webdav", {}).get("auth")
        return options | {"auth": tuple(auth)} if isinstance(auth, list) else options
    return {"timeout": CONNECT_SECONDS} if client == "sftp" else {}


def _bound_sftp(fs: Any) -> None:
    """Give its answers a limit, and a connection that is lost another one."""
    connection = fs.client.get_transport()  # none where connecting has failed
    if connection is None or not connection.is_active() or fs.ftp.get_channel().closed:
        fs._connect()
    fs.ftp.get_channel().settimeout(READ_SECONDS)


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

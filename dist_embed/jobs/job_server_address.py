"""Where the job server of a Ray cluster is, and whether it may be spoken to.

Whoever reaches a job server without tokens runs code on the cluster (CVE-2023-48022), so away from
this machine one that asks for none is refused.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from dist_embed.errors import UserError

_HOW_TO_GIVE = "RAY_API_SERVER_ADDRESS=http://HEAD:8265, cluster.submit.ray.address or --address"
_TOKEN_IN = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def job_server(address: str | None) -> str:
    """The URL of the job server at ``address``, or else where Ray's variables say.

    Raises UserError where none is known, or none can be there.
    """
    given, origin = address, "address"
    if given is None:
        origin = next((name for name in _variables() if os.environ.get(name)), "")
        given = os.environ.get(origin, "")
    if not given:
        raise UserError(f"which Ray cluster? give {_HOW_TO_GIVE}")
    if origin == "RAY_ADDRESS" and not given.startswith(("http://", "https://")):
        # Ray's own client asks that for the job server, for minutes where nobody answers (2.60).
        raise UserError(
            f"RAY_ADDRESS={given!r} is where drivers connect, not the job server: give "
            f"{_HOW_TO_GIVE}"
        )
    url = (given if "://" in given else f"http://{given}").rstrip("/")
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port
        is_one = False
    if not is_one or parts.username is not None:
        raise UserError(
            f"{origin}: {given!r} is not allowed: http://HOST:PORT, https:// or HOST:PORT"
        )
    return url


def is_known() -> bool:
    """Whether Ray's variables name a cluster."""
    return any(os.environ.get(name) for name in _variables())


def _variables() -> tuple[str, ...]:
    return ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def is_loopback(url: str) -> bool:
    """Whether only this machine reaches it."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def use_token(url: str, *, insecure: bool) -> None:
    """Have Ray send the token that there is. To be called before ray is imported, which looks once.

    Raises:
        UserError: token authentication is on, but there is no token; or it is off, the server is
            not on this machine, and it is not ``insecure`` that is asked for.
    """
    found = _token_is_there()
    if found:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        if not found:
            raise UserError(f"RAY_AUTH_MODE=token, but there is no token in {_TOKEN_IN}")
    elif not is_loopback(url) and not insecure:
        raise UserError(
            f"{url} without token authentication is refused: set RAY_AUTH_MODE=token, with the "
            f"cluster's token in {_TOKEN_IN}; --insecure goes there without"
        )


def _token_is_there() -> bool:
    """As Ray looks for it (2.60): the first of the three that is set decides."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return bool(token.strip())
    try:
        return bool(token_file().read_text().strip())
    except OSError:
        return False


def token_file() -> Path:
    """Where Ray looks for a token that no variable holds; nothing need be there."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")

"""Passwords in URLs, which are shown nowhere and kept nowhere."""

from __future__ import annotations

import re

# Behind one slash too: a path has no two.
_PASSWORD = re.compile(r"(?<=:/)(/?[^/@:\s]*):([^/@\s]*)@")


def masked(text: str) -> str:
    """``text`` without the passwords of the URLs in it."""
    return _PASSWORD.sub(r"\1:***@", text)


def password_in(uri: str) -> str | None:
    """What is wrong with a URL that holds a password, and what to do; None where it holds none."""
    if "://" not in uri or not _PASSWORD.search(uri):
        return None
    return (
        f"{masked(uri)!r} is not allowed: a password in a URL is kept in configurations, and shown "
        "in messages and logs. Leave it out and give it where the store's client looks for it: a "
        "profile, a key of ssh, the client's variables in the environment, or fsspec's, such as "
        "FSSPEC_SFTP_USERNAME and FSSPEC_SFTP_PASSWORD"
    )

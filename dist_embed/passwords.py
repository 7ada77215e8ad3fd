"""Passwords in URLs, and signatures that open them: shown nowhere, and passwords kept nowhere."""

from __future__ import annotations

import re

# Behind one slash too: a path has no two. Whatever an @ ends before the first slash is a password;
# else, for it may hold slashes and blanks itself, what begins as no port does. Of several @ the
# last counts: rather a part of a path is hidden than one of a password shown. What is repeated has
# a bound, for a text may be long and have many such beginnings; but what is longer is hidden.
_PASSWORD = re.compile(
    r"""
    (?<=:/)(?<!github:/)(?<!\bgit:/)  # of fsspec's two a revision stands before the @
    (/?(?!arn:)[^/:\s\[?#]{0,2000})  # a user; no name of Amazon's, no address of IPv6, no query
    :(?:(?=[^/\s]{0,2000}@) | (?!:|\d*(?:[/?#\s]|$)|\d+['",:;.)\]}]))  # not the :: of a chain
    (?:(?:(?!::\w+://)\S){0,2000}@ | (?:(?!://)[^@\n]){0,2000}@(?:\S{0,2000}@)?
        | \S{2000}\S*)  # so long is no path: a token
    """,
    re.VERBOSE,
)
# Of links to Amazon's, Google's and Azure's stores, and of other services'.
_SECRET = re.compile(
    r"([?&](?:sig|(?:x-(?:amz|goog)-)?signature|x-amz-security-token|(?:\w+_)?token)=)[^&#\s'\"]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """``text`` without the passwords and signatures of the URLs in it."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


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

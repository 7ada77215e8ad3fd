"""Folders of temporary files in which no socket can lie."""

from __future__ import annotations

import os
import tempfile

from dist_embed.errors import UserError

_SOCKET_BYTES = 107  # of Linux, unix(7)


def if_too_long(said: str, *variables: str) -> UserError | None:
    """What is raised of a failure that ``said`` so, where a folder's path is too long for a socket
    below it: of the first of the environment ``variables`` that is set.
    """
    if "AF_UNIX path" not in said:
        return None
    name = next((name for name in variables if name in os.environ), variables[-1])
    folder = os.environ.get(name) or tempfile.gettempdir()
    return UserError(
        f"{name}: {folder!r} is too long for a socket below it, whose whole path may have "
        f"{_SOCKET_BYTES} bytes; set it to a shorter one, such as /tmp"
    )

"""What ends a command with a message: one tree, which all layers know.

Errors of a part of the project (`CorpusError`, `CheckpointError`, …) are `UserError`s that are
defined there. What the system says of a file stays an `OSError`: it names the file.
"""

from collections.abc import Iterator
from typing import Any

from dist_embed.passwords import masked


class DistEmbedError(Exception):
    """All that dist_embed raises on purpose. The message says all that a user needs, and no URL's
    password.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*(masked(one) if isinstance(one, str) else one for one in given))


class UserError(DistEmbedError):
    """What was given cannot be used (exit code 2): the thing, its value and what is allowed."""


class ConfigError(UserError):
    """The configuration cannot be used."""


class StorageError(UserError):
    """A store that cannot be used: an unknown protocol, a missing package, wrong credentials."""


class NotWritable(StorageError):
    """A place where nothing can be written: read-only, another user's, full (exit code 1)."""


class StoreUnavailable(StorageError):
    """The store did not do what it was asked to within the time limit."""


class RunFailed(DistEmbedError):
    """Workers failed (exit code 1); the message holds the traceback of the first that failed."""


class RunStopped(DistEmbedError):
    """A run ended early because it was asked to; the message says where it goes on.

    The command's exit code is 128 and the number of the signal, as of a process that it ends.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, what that came from, …: each once, for some are their own cause
    (``raise exc from exc``).
    """
    told: list[BaseException] = []
    while error is not None and not any(error is one for one in told):
        yield error
        told.append(error)
        error = error.__cause__


def in_a_line(error: BaseException) -> str:
    """An error in a line that is not too long: those of some stores hold the whole reply."""
    # Not cut within a password, which would then be shown.
    text = masked(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__

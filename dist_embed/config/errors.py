"""What ends a command with a message.

Mistakes of the user (exit code 2), failed runs (1), runs that were asked to stop (128 and the
number of the signal that asked, as of a process that it ends).
"""


class UserError(Exception):
    """What was given cannot be used. The message names the thing, its value and what is allowed."""


class RunFailed(Exception):
    """Workers failed; the message holds the traceback of the one that failed first."""


class RunStopped(Exception):
    """A run ended early because it was asked to; the message says where it goes on."""


class ConfigError(UserError):
    """The configuration cannot be used."""

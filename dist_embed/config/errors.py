"""What ends a command with a message: mistakes of the user (exit code 2), failed runs (1)."""


class UserError(Exception):
    """What was given cannot be used. The message names the thing, its value and what is allowed."""


class RunFailed(Exception):
    """Workers failed; the message holds the traceback of the one that failed first."""


class ConfigError(UserError):
    """The configuration cannot be used."""

"""Mistakes of the user: one message, exit code 2, no traceback."""


class UserError(Exception):
    """What was given cannot be used. The message names the thing, its value and what is allowed."""


class ConfigError(UserError):
    """The configuration cannot be used."""

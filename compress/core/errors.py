"""The errors of a command: bad input (exit code 1) and a failed gate (exit code 3). Every other exception is a bug."""

import click


class QCompressError(click.ClickException):
    """Bad input. The message is one line: what is wrong, where, and what to do. Exit code 1, no traceback."""

    exit_code = 1


class BadValueError(QCompressError, ValueError):
    """A setting or a file holds a value that cannot be used. Python callers can catch it as ValueError."""


class GateFailure(QCompressError):
    """A result exceeds a limit of the user, or a checkpoint breaks a rule. Exit code 3."""

    exit_code = 3

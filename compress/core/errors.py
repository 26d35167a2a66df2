"""The errors of a command: bad input (exit code 1) and a failed gate (exit code 3). Every other exception is a bug."""

import click


class QCompressError(click.ClickException):
    """Bad input. The message is one line with the fault, its place and the cure. The exit code is 1."""

    exit_code = 1


class BadValueError(QCompressError, ValueError):
    """A setting or a file has a value that cannot be used. Python code can catch this error as a ValueError."""


class GateFailure(QCompressError):
    """A result exceeds one of the user's limits, or a checkpoint breaks a rule. The exit code is 3."""

    exit_code = 3

"""The errors of a command: bad input (exit code 1) and a failed gate (exit code 3). Every other exception is a bug."""

from calibration.errors import QCompressError as QCompressError


class BadValueError(QCompressError, ValueError):
    """A setting or a file has a value that cannot be used. Python code can catch this error as a ValueError."""


class UnknownSettingError(QCompressError, TypeError):
    """There is no setting of that name. Python code can catch this error as a TypeError."""


class GateFailure(QCompressError):
    """A result exceeds one of the user's limits, or a checkpoint breaks a rule. The exit code is 3."""

    exit_code = 3

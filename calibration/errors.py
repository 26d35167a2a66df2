"""Errors that a user can cause. Each is one line with the file, the number and the cure."""

import click


class QCompressError(click.ClickException):
    """Bad input. The message is one line with the fault, its place and the cure. The exit code is 1.

    All errors that a user can cause are of this class. Every other exception is a bug.
    """

    exit_code = 1


class CalibrationError(QCompressError, ValueError):
    """Calibration text that cannot be used. The message is always a single line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class TooShortError(CalibrationError):
    """The text of `source` has too few tokens. A window takes `body` tokens from all sources together.

    `tokens` is the length of the text, and `fitting` the number of windows that it can fill.
    """

    def __init__(self, message: str, *, source: str, tokens: int, body: int, fitting: int):
        super().__init__(message)
        self.source, self.tokens, self.body, self.fitting = source, tokens, body, fitting

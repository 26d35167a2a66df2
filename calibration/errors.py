"""Errors that a user can cause. Each is one line with the file, the number and the cure."""


class CalibrationError(ValueError):
    """Calibration text that cannot be used. The message is always a single line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class TooShortError(CalibrationError):
    """The text has too few tokens. `fitting` is the number of windows that it can fill."""

    def __init__(self, message: str, fitting: int):
        super().__init__(message)
        self.fitting = fitting

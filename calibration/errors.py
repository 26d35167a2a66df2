"""Errors that a user can cause: one line that names the file, the number and the cure."""


class CalibrationError(ValueError):
    """Calibration text that cannot be used. The message is always a single line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class TooShortError(CalibrationError):
    """The text is too short; it contains `fitting` windows of the requested length."""

    def __init__(self, message: str, fitting: int):
        super().__init__(message)
        self.fitting = fitting

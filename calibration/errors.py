"""The errors a user can cause here: they say which file, which number, and the cure, on one line."""


class CalibrationError(ValueError):
    """Calibration text that cannot be used. The message is always a single line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class TooShortError(CalibrationError):
    """The text is shorter than the windows asked for; `fitting` windows of that length are in it."""

    def __init__(self, message: str, fitting: int):
        super().__init__(message)
        self.fitting = fitting

"""The one error a user can cause here: it says which file, which number, and the cure, on one line."""


class CalibrationError(ValueError):
    """Calibration text that cannot be used. The message is always a single line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))

"""The error of a conversion that is not exact: measured on what was written, and stated in the result."""

from dataclasses import dataclass

from torch import Tensor

from compress.core.errors import GateFailure
from compress.core.report import Row

MOST = 0.25  # a relative error above it is no rounding, but a mistake


@dataclass
class MeasuredError:
    """Differences between written and original weights, summed over tensors."""

    tensors: int = 0
    largest: float = 0.0
    error_energy: float = 0.0
    energy: float = 0.0

    def add(self, written: Tensor, original: Tensor) -> None:
        """Add a tensor. Both are float32, of one shape."""
        difference = written - original
        self.tensors += 1
        self.largest = max(self.largest, difference.abs().max().item())
        self.error_energy += difference.double().square().sum().item()
        self.energy += original.double().square().sum().item()

    @property
    def relative(self) -> float:
        """The root mean square of the error, relative to that of the weights."""
        return (self.error_energy / self.energy) ** 0.5 if self.energy else 0.0

    def row(self, kind: str) -> Row:
        """The error of all tensors of a kind. Raises GateFailure if it is too large for rounding."""
        if not self.relative <= MOST:
            raise GateFailure(
                f"{kind}: the relative error is {self.relative:.3g}, more than {MOST}; report this as a bug"
            )
        return {
            "type": kind,
            "tensors": self.tensors,
            "largest_error": self.largest,
            "relative_error": self.relative,
        }

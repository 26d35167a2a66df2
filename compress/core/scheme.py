"""How a weight is quantized, without the weight: plans and formats need no torch."""

from dataclasses import dataclass

from compress.core.dtypes import Dtype

SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: smaller scales lose bits on disk


@dataclass(frozen=True)
class Scheme:
    """How a weight is quantized: bits per code, columns per group, symmetric or not, and the dtype of stored scales."""

    bits: int = 4
    group_size: int = 128
    sym: bool = False
    dtype: Dtype = Dtype.float16

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

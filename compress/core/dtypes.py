"""Dtypes by name, so that headers, sizes and plans need no torch."""

import builtins
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import dtype as TorchDtype


class Dtype(StrEnum):
    """The dtype of a stored tensor. Its value is its name in config.json and in torch."""

    float64 = "float64"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float8_e4m3fn = "float8_e4m3fn"
    float8_e5m2 = "float8_e5m2"
    float8_e8m0fnu = "float8_e8m0fnu"
    complex64 = "complex64"
    int64 = "int64"
    int32 = "int32"
    int16 = "int16"
    int8 = "int8"
    uint64 = "uint64"
    uint32 = "uint32"
    uint16 = "uint16"
    uint8 = "uint8"
    bool = "bool"

    @property
    def itemsize(self) -> int:
        """Bytes per value."""
        return BYTES[self]

    @property
    def is_floating_point(self) -> builtins.bool:
        return "float" in self.value

    @property
    def torch(self) -> "TorchDtype":
        """The dtype as torch has it. Imports torch."""
        return cast("TorchDtype", getattr(import_module("torch"), self.value))

    @classmethod
    def of(cls, dtype: "TorchDtype") -> "Dtype":
        """The name of a torch dtype."""
        return cls(str(dtype).removeprefix("torch."))


BYTES = {
    **dict.fromkeys((Dtype.float64, Dtype.complex64, Dtype.int64, Dtype.uint64), 8),
    **dict.fromkeys((Dtype.float32, Dtype.int32, Dtype.uint32), 4),
    **dict.fromkeys((Dtype.float16, Dtype.bfloat16, Dtype.int16, Dtype.uint16), 2),
    **dict.fromkeys((Dtype.float8_e4m3fn, Dtype.float8_e5m2, Dtype.float8_e8m0fnu), 1),
    **dict.fromkeys((Dtype.int8, Dtype.uint8, Dtype.bool), 1),
}

"""The exact bytes of a model in plain 4 bits: the layout that `qcompress quantize` writes without further options."""

from typing import Any

from compress.checkpoint.formats import FORMATS
from compress.checkpoint.write import TensorSpec, planned_bytes
from compress.core.config import DEFAULT_FORMAT, GROUP_SIZES, QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.scheme import Scheme
from compress.model.shapes import linear_shapes, parameter_shapes


def plain_int4_bytes(config: dict[str, Any], dtype: Dtype = Dtype.float16) -> int | None:
    """The size of all weight files, headers included, with scales and unpacked tensors in `dtype`.

    None if no group size divides the inputs of every linear, so that the model cannot be quantized.
    """
    linears = linear_shapes(config)
    legal = [size for size in GROUP_SIZES if all(inn % size == 0 for _, inn in linears.values())]
    if not legal or any(out % 8 or inn % 8 for out, inn in linears.values()):
        return None
    row, scheme = FORMATS[DEFAULT_FORMAT[QuantizeConfig.method]], Scheme(group_size=legal[0], dtype=dtype)
    packed = [
        TensorSpec(f"{name}.{spec.name}", spec.dtype, spec.shape)
        for name, shape in linears.items()
        for spec in row.specs(*shape, scheme)
    ]
    others = [
        TensorSpec(name, dtype, shape)
        for name, shape in parameter_shapes(config).items()
        if name.removesuffix(".weight") not in linears
    ]
    return planned_bytes([*packed, *others])

"""The on-disk formats: names, dtypes and shapes of packed tensors, and functions that read packed weights.

    awq                 asymmetric, GEMM layout          AutoAWQ; vLLM auto_awq.py
    gptq                symmetric, v1 zeros, g_idx       GPTQModel; vLLM auto_gptq.py
    compressed-tensors  both, "pack-quantized"           vllm-project/compressed-tensors

`packing.py` makes the tensors, `schemes.py` reads and writes quantization_config. A new format is one row of FORMATS
and one of PACKINGS.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.dtypes import unreadable_faults
from compress.checkpoint.door.fault import refuse
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import (
    Schemes,
    awq_config,
    awq_scheme,
    ct_config,
    ct_scheme,
    gptq_config,
    gptq_scheme,
    kind,
    stored_layout,
)
from compress.checkpoint.write import TensorSpec
from compress.core.dtypes import Dtype
from compress.core.errors import BadValueError, QCompressError
from compress.core.scheme import Scheme
from compress.model.wrappers import TEXT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.checkpoint.packing import Tensors
    from compress.core.grid import QuantizedWeight


@dataclass(frozen=True)
class Format:
    """One on-disk format. `symmetric` has True if it stores symmetric grids, and False if it stores asymmetric ones.

    `specs` lists the tensors of a packed module. `config` makes the quantization_config from schemes, skipped linears
    and carried modules, and `scheme` reads a module's scheme from it. `packed` is the name of the tensor with codes.
    """

    name: str
    symmetric: tuple[bool, ...]
    specs: Callable[[int, int, Scheme], list[TensorSpec]]
    config: Callable[..., dict[str, Any]]
    scheme: Callable[[dict[str, Any], str, Dtype], Scheme]
    packed: str

    def save(self, weight: "QuantizedWeight", dtype: "torch.dtype") -> "Tensors":
        """The packed tensors of a weight by suffix, with scales in `dtype`."""
        from compress.checkpoint.packing import PACKINGS

        return PACKINGS[self.name].save(weight, dtype)

    def load(self, read: Callable[[str], "Tensor"], scheme: Scheme, layout: str | None = None) -> "QuantizedWeight":
        """The inverse of `save`. `read` returns the tensor of a suffix. `layout` is a variant of the format."""
        from compress.checkpoint.packing import PACKINGS

        return PACKINGS[layout or self.name].load(read, scheme)


def awq_specs(out: int, inn: int, scheme: Scheme) -> list[TensorSpec]:
    groups = inn // scheme.group_size
    return [
        TensorSpec("qweight", Dtype.int32, (inn, out // 8)),
        TensorSpec("qzeros", Dtype.int32, (groups, out // 8)),
        TensorSpec("scales", scheme.dtype, (groups, out)),
    ]


def gptq_specs(out: int, inn: int, scheme: Scheme) -> list[TensorSpec]:
    groups, per_word = inn // scheme.group_size, 32 // scheme.bits
    return [
        TensorSpec("qweight", Dtype.int32, (inn // per_word, out)),
        TensorSpec("qzeros", Dtype.int32, (groups, out // per_word)),
        TensorSpec("scales", scheme.dtype, (groups, out)),
        TensorSpec("g_idx", Dtype.int32, (inn,)),
    ]


def ct_specs(out: int, inn: int, scheme: Scheme) -> list[TensorSpec]:
    groups, per_word = inn // scheme.group_size, 32 // scheme.bits
    specs = [
        TensorSpec("weight_packed", Dtype.int32, (out, inn // per_word)),
        TensorSpec("weight_scale", scheme.dtype, (out, groups)),
        TensorSpec("weight_shape", Dtype.int64, (2,)),
    ]
    return specs if scheme.sym else [*specs, TensorSpec("weight_zero_point", Dtype.int32, (out // per_word, groups))]


ORDERS = ("g_idx", "weight_g_idx")  # suffixes of the tensor with the group of each column
FORMATS = {
    "awq": Format("awq", (False,), awq_specs, awq_config, awq_scheme, "qweight"),
    "gptq": Format("gptq", (True,), gptq_specs, gptq_config, gptq_scheme, "qweight"),
    "compressed-tensors": Format("compressed-tensors", (True, False), ct_specs, ct_config, ct_scheme, "weight_packed"),
}


def format_of(checkpoint: Checkpoint) -> Format | None:
    """The format of a checkpoint, or None if it is not quantized. Raises QCompressError if it is unsupported."""
    if checkpoint.quantization is None:
        return None
    method = str(checkpoint.quantization.get("quant_method"))
    if method not in FORMATS:
        supported = ", ".join(FORMATS)
        raise QCompressError(f"{checkpoint.path}: quantized by {method}, which cannot be read; supported: {supported}")
    return FORMATS[method]


def model_dtype(config: dict[str, Any]) -> Dtype:
    """The dtype in config.json, float16 by default. Raises QCompressError if it is unsupported."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float16").removeprefix("torch.")
    dtypes = (Dtype.float16, Dtype.bfloat16, Dtype.float32)
    if name not in dtypes:
        raise QCompressError(f"config.json: dtype {name} is not supported; supported: {', '.join(dtypes)}")
    return Dtype(name)


def packed_config(
    config: dict[str, Any], row: Format, schemes: Schemes, unquantized: list[str], carried: list[str] | None = None
) -> dict[str, Any]:
    """config.json of the packed checkpoint: the source's, with the dtype of the scales and a quantization_config.

    `unquantized` are linears, and `carried` are modules, such as a vision tower, without packed linears. A packed
    embedding has no weight to share with the head, so tie_word_embeddings becomes false.
    """
    dtype = next(iter(schemes.values())).dtype.value
    values: dict[str, Any] = {"dtype": dtype, "torch_dtype": dtype}
    if any(kind(module) == "embedding" for module in schemes):
        values["tie_word_embeddings"] = False
    packed = config | values
    if isinstance(config.get(TEXT), dict):
        packed[TEXT] = config[TEXT] | {key: value for key, value in values.items() if key in config[TEXT]}
    return packed | {"quantization_config": row.config(schemes, unquantized, carried or [])}


def quantized_weight(checkpoint: Checkpoint, module: str) -> "QuantizedWeight":
    """Codes, scales and zeros of the packed linear at a module path. Raises ValueError if shapes do not match."""
    row = format_of(checkpoint)
    if row is None:
        raise QCompressError(f"{checkpoint}: is not quantized, so {module} has no codes; give a quantized one")
    assert checkpoint.quantization is not None
    return quantized_as(checkpoint, module, row.scheme(checkpoint.quantization, module, model_dtype(checkpoint.config)))


def quantized_as(checkpoint: Checkpoint, module: str, scheme: Scheme) -> "QuantizedWeight":
    """Codes, scales and zeros of a linear packed in `scheme`. Raises ValueError if shapes do not match."""
    row = format_of(checkpoint)
    assert row is not None
    layout = stored_layout(checkpoint.quantization or {})
    weight = row.load(lambda suffix: checkpoint.tensor(f"{module}.{suffix}"), scheme, layout)
    if weight.scales.shape != weight.zeros.shape or scheme.group_size not in (-1, weight.group_size):
        shapes = f"scales {tuple(weight.scales.shape)}, zeros {tuple(weight.zeros.shape)}"
        raise BadValueError(
            f"{module}: {shapes} do not fit codes {tuple(weight.codes.shape)} in groups of {scheme.group_size}"
        )
    return with_order(checkpoint, module, weight)


def with_order(checkpoint: Checkpoint, module: str, weight: "QuantizedWeight") -> "QuantizedWeight":
    """The weight with the column order that the checkpoint stores for it, if it stores one."""
    from compress.checkpoint.packing import column_order

    name = next((name for suffix in ORDERS if (name := f"{module}.{suffix}") in checkpoint.tensors), None)
    try:
        return weight if name is None else replace(weight, order=column_order(checkpoint.tensor(name), weight))
    except ValueError as error:
        raise BadValueError(f"{module}: {error}") from None


def weight_reader(checkpoint: Checkpoint) -> Callable[[str], "Tensor"]:
    """A function that returns a parameter by its Hugging Face name. Packed ones are dequantized to float32.

    Raises QCompressError if the checkpoint is quantized in a format that cannot be read.
    """
    refuse(checkpoint.path, unreadable_faults(checkpoint))
    row = format_of(checkpoint)

    def read(name: str) -> "Tensor":
        module = name.removesuffix(".weight")
        if row is not None and name not in checkpoint.tensors and f"{module}.{row.packed}" in checkpoint.tensors:
            return quantized_weight(checkpoint, module).dequantize()
        return checkpoint.tensor(name)

    return read

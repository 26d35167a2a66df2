"""Quantized weights, recognized by tensor dtypes, tensor names and other tools' config files.

Codes that are read as weights give a wrong model without an error. So a checkpoint is refused if it shows any sign of a
quantization that config.json does not describe. It is also refused if config.json describes an unsupported format,
unless the command passes the checkpoint to a runtime that can read it. A new tool is one row of a table.
"""

from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.fault import Fault, Faults
from compress.checkpoint.door.files import CONFIG
from compress.core.dtypes import Dtype

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint

PLAIN = (Dtype.float64, Dtype.float32, Dtype.float16, Dtype.bfloat16)
CURE = "give the 16-bit checkpoint"
FILES = {  # config files of other tools -> the tool
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
    "quantization_map.json": "optimum-quanto",
    "quanto_qmap.json": "optimum-quanto",
}
KEYS = {"quantization": "MLX", "compression_config": "compressed-tensors", "quant_config": "another tool"}
SUFFIXES = {  # the last part of a tensor's name -> what it stores
    "qweight": "packed codes",
    "qzeros": "packed zeros",
    "weight_packed": "packed codes",
    "weight_scale": "FP8 or INT8 scales",
    "weight_scale_inv": "FP8 scales",
    "weight_scale_2": "NVFP4 scales",
    "SCB": "bitsandbytes scales",
    "absmax": "bitsandbytes scales",
    "quant_map": "bitsandbytes codes",
    "gate_up_proj_blocks": "MXFP4 codes",
    "down_proj_blocks": "MXFP4 codes",
}
PAIRS = {("scales", "biases"): "MLX", ("scales", "g_idx"): "GPTQ"}  # suffixes that one module has together
SUPPORTED = ("awq", "gptq", "compressed-tensors")
READABLE: dict[str, dict[str, tuple[Any, ...]]] = {  # settings of each format, and the values that can be read
    "awq": {"bits": (4,), "w_bit": (4,), "version": ("gemm", "GEMM"), "zero_point": (True,)},
    "gptq": {
        "bits": (2, 3, 4, 8),
        "checkpoint_format": ("gptq", "gptq_v2"),
        "pack_dtype": ("int32",),
        "is_marlin_format": (False,),
    },
    "compressed-tensors": {},
}
READABLE_GROUP: dict[str, tuple[Any, ...]] = {  # the same for a config group of compressed-tensors
    "num_bits": (4, 8),
    "type": ("int",),
    "strategy": ("group", "channel"),
}
CODED = ("weight", *(name for name in SUFFIXES if name.endswith("_blocks")))


def unreadable_faults(checkpoint: "Checkpoint") -> Faults:
    """Weights in a format that config.json describes, but that only other runtimes can read."""
    if checkpoint.quantization is not None:
        yield from unsupported(checkpoint.quantization)
        yield from coded_weights(checkpoint, "a dtype that cannot be read")


def quantization_faults(checkpoint: "Checkpoint") -> Faults:
    """Signs of a quantization in a checkpoint whose config.json has no quantization_config."""
    if checkpoint.quantization is not None:
        return
    for file, tool in FILES.items():
        if (checkpoint.path / file).exists():
            yield Fault(file, "", f"already quantized by {tool}", f"{CURE}, or delete the file if it is a leftover")
    text = checkpoint.config.get("text_config")
    if isinstance(text, dict) and text.get("quantization_config") is not None:
        yield Fault(CONFIG, "text_config.quantization_config", "already quantized", CURE)
    for key, tool in KEYS.items():
        if checkpoint.config.get(key):
            yield Fault(CONFIG, key, f"already quantized by {tool}", CURE)
    yield from coded_weights(checkpoint, "already quantized")
    yield from coded_names(checkpoint)


def coded_weights(checkpoint: "Checkpoint", text: str) -> Faults:
    """Weights of a dtype that is not a 16-, 32- or 64-bit float."""
    for name, info in checkpoint.tensors.items():
        one_byte_float = info.dtype.is_floating_point and info.dtype not in PLAIN
        suspicious = one_byte_float or (name.rpartition(".")[2] in CODED and info.dtype not in PLAIN)
        if suspicious and name.rpartition(".")[2] in ("weight", *CODED):
            yield Fault(info.file.name, name, f"{text} ({info.dtype})", CURE)


def coded_names(checkpoint: "Checkpoint") -> Faults:
    """Tensors whose names occur only in quantized layers."""
    modules: dict[str, set[str]] = {}
    for name, info in checkpoint.tensors.items():
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, set()).add(suffix)
        if suffix in SUFFIXES:
            yield Fault(info.file.name, name, f"already quantized ({SUFFIXES[suffix]})", CURE)
    for module, suffixes in modules.items():
        for pair, tool in PAIRS.items():
            if suffixes.issuperset(pair):
                yield Fault(CONFIG, f"{module}.{pair[0]}", f"already quantized by {tool}", CURE)


def unsupported(quantization: dict[str, Any]) -> Faults:
    """A quantization_config in a format that cannot be read."""
    method = quantization.get("quant_method")
    if method not in SUPPORTED:
        supported = ", ".join(SUPPORTED)
        text = f"{method!r:.60} is not supported; supported: {supported}"
        yield Fault(CONFIG, "quantization_config.quant_method", text, CURE)
    elif method == "compressed-tensors" and quantization.get("format", "pack-quantized") != "pack-quantized":
        text = f"{quantization['format']!r:.60} is not supported; supported: pack-quantized"
        yield Fault(CONFIG, "quantization_config.format", text, CURE)
    else:
        yield from unsupported_values(quantization, READABLE[method], "quantization_config")
        groups = quantization.get("config_groups")
        for name, group in groups.items() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                where = f"quantization_config.config_groups.{name}.weights"
                yield from unsupported_values(weights, READABLE_GROUP, where)


def unsupported_values(values: dict[str, Any], allowed: dict[str, tuple[Any, ...]], where: str) -> Faults:
    """Settings that say that the weights are stored in a way that cannot be read."""
    for key, choices in allowed.items():
        value = values.get(key)
        if value is not None and value not in choices:
            supported = ", ".join(map(str, choices))
            yield Fault(CONFIG, f"{where}.{key}", f"{value!r:.60} is not supported; supported: {supported}", CURE)

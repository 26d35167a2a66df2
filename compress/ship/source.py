"""Open a quantized checkpoint for conversion: only one that is sound, and of which every part is understood.

A converted checkpoint looks healthy whatever it was made from, so all faults must be found before.
"""

from collections.abc import Container

from compress.checkpoint.check.run import check_checkpoint, describe_errors, error_rows, prompt_fault
from compress.checkpoint.foreign import standard_view
from compress.checkpoint.formats import Format, format_of
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import CONFIG, Checkpoint, PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.core.grid import Scheme
from compress.core.report import Row

NOTES = (  # keys that tools add about themselves or about their kernels
    *("quant_method", "version", "meta", "quantizer", "backend", "format", "method", "model_name_or_path"),
    *("model_file_base_name", "tokenizer", "dataset", "batch_size", "model_seqlen", "pad_token_id", "damp_percent"),
    *("damp_auto_increment", "use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config", "max_input_length"),
    *("cache_block_outputs", "block_name_to_quantize", "module_name_preceding_first_block", "pack_dtype", "mse"),
    *("modules_in_block_to_quantize", "true_sequential", "static_groups", "act_group_aware", "is_marlin_format"),
    *("do_fuse", "fuse_max_seq_len", "modules_to_fuse", "quantization_status", "global_compression_ratio"),
)
KEYS = {
    "awq": ("bits", "w_bit", "group_size", "q_group_size", "zero_point", "lm_head", "modules_to_not_convert"),
    "gptq": ("bits", "group_size", "desc_act", "sym", "lm_head", "checkpoint_format", "dynamic"),
    "compressed-tensors": ("ignore", "config_groups"),
}


def open_quantized(source: PathOrCheckpoint) -> tuple[Checkpoint, Format]:
    """The quantized checkpoint at a path, or an open one, and its format.

    Raises QCompressError if it is not quantized, if it breaks a rule of `check`, or if a setting or a tensor of its
    quantization is unknown, because the conversion would lose it. Faults of the tokenizer's files are copied.
    """
    checkpoint = open_causal_lm(source)
    checkpoint = standard_view(checkpoint)
    row = format_of(checkpoint)
    if row is None:
        raise QCompressError(f"{checkpoint}: is not quantized; quantize it first with qcompress quantize")
    check_keys(checkpoint, row)
    errors = [error for error in error_rows(check_checkpoint(checkpoint)) if not harmless(checkpoint, error)]
    if errors:
        raise QCompressError(
            f"{checkpoint}: {describe_errors(errors)}; convert a checkpoint that passes qcompress check"
        )
    check_tensors(checkpoint, row)
    return checkpoint, row


def harmless(checkpoint: Checkpoint, error: Row) -> bool:
    """Whether an error of `check` does not change what the weights mean: it is copied, or not in the other format.

    vLLM reads no zero points of gptq, so `check` refuses them. They are still exact in other formats.
    """
    asymmetric = (checkpoint.quantization or {}).get("sym") is False and (
        error.get("key") == "quantization_config.sym"
        or (error["rule"] == "T5" and str(error.get("tensor")).endswith(".qzeros"))
    )
    return prompt_fault(error) is not None or asymmetric


def check_keys(checkpoint: Checkpoint, row: Format) -> None:
    """Raises QCompressError for a key of quantization_config that is unknown and has a value."""
    known: Container[str] = (*NOTES, *KEYS[row.name])
    for key, value in (checkpoint.quantization or {}).items():
        if key not in known and value not in (None, False, {}, []):
            raise QCompressError(
                f"{checkpoint.path / CONFIG}: quantization_config.{key} is unknown, and the conversion would lose it; "
                "remove the key if it does not change the model"
            )


def check_tensors(checkpoint: Checkpoint, row: Format) -> None:
    """Raises QCompressError for a tensor of a packed module that its format does not have."""
    modules = set(packed_modules(checkpoint, row))
    schemes = [Scheme(4, 32, sym) for sym in row.symmetric]
    suffixes = {"bias", *(spec.name for scheme in schemes for spec in row.specs(32, 32, scheme))}
    for name in checkpoint.tensors:
        module, _, suffix = name.rpartition(".")
        if module in modules and suffix not in suffixes:
            raise QCompressError(
                f"{checkpoint}: {name} is not a tensor of the {row.name} format, and the conversion would lose it; "
                "convert a checkpoint without it"
            )


def packed_modules(checkpoint: Checkpoint, row: Format) -> list[str]:
    """The paths of all packed modules, in the order of the weight files."""
    suffix = f".{row.packed}"
    return [name.removesuffix(suffix) for name in checkpoint.tensors if name.endswith(suffix)]

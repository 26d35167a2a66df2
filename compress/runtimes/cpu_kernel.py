"""The 4-bit matrix product that vLLM uses on a CPU, for CPUs without AVX-512.

vLLM ships this operator, `torch.ops._C.cpu_gemm_wna16`, for AVX-512 only. `register` is a `vllm.general_plugins` entry
point, so vLLM calls it in every process; it adds the operator if vLLM lacks it. `wna16.c` computes the product and is
compiled once per user. Without a compiler or without AVX2, torch computes the product, much more slowly, and a warning
is printed once.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OPERATOR = "cpu_gemm_wna16"
SCHEMA = (
    f"{OPERATOR}(Tensor input, Tensor q_weight, Tensor(a!) output, Tensor scales, Tensor? zeros, Tensor? bias, "
    "int pack_factor, str isa_hint) -> ()"
)
SOURCE = Path(__file__).with_name("wna16.c")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-mavx2", "-mfma", "-mf16c")
BLOCK = 16  # outputs whose codes lie together in q_weight

logger = logging.getLogger(__name__)
_libraries: list[Any] = []  # kept forever: torch removes an operator when its Library is garbage-collected


def register() -> None:
    """Add the operator to vLLM if it is missing. Does nothing on a GPU, without vLLM, or in a second call."""
    if find_spec("vllm") is None:
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    import vllm._custom_ops  # noqa: F401  loads vLLM's operators for this CPU

    if hasattr(torch.ops._C, OPERATOR):
        return
    library = torch.library.Library("_C", "FRAGMENT")
    library.define(SCHEMA)
    library.impl(OPERATOR, gemm, "CPU")
    _libraries.append(library)


def gemm(
    input: "Tensor",
    q_weight: "Tensor",
    output: "Tensor",
    scales: "Tensor",
    zeros: "Tensor | None",
    bias: "Tensor | None",
    pack_factor: int,
    isa_hint: str,
) -> None:
    """Compute output (tokens, N) = input (tokens, K) Wᵀ + bias (N), in the dtype of the input.

    `q_weight` is (N / 16, 2 K) int32, `scales` (groups, N), and `zeros` (groups, N / 8) int32, or None if every zero
    is 8. `pack_factor` is always 8. `isa_hint` names an instruction set. Neither of the two changes the result.
    """
    reason = uncompiled_reason(input.dtype)
    if reason:
        warn_once(reason)
        output.copy_(gemm_in_torch(input, q_weight, scales, zeros, bias))
    elif len(input):
        gemm_in_c(input, q_weight, output, scales, zeros, bias)


def dequantize(q_weight: "Tensor", scales: "Tensor", zeros: "Tensor | None") -> "Tensor":
    """The unpacked weight Wᵀ, (K, N) float32."""
    from compress.core.pack import unpack_words

    groups, outputs = scales.shape
    blocks = q_weight.reshape(outputs // BLOCK, -1, 2)
    codes = unpack_words(blocks, 4, 2).transpose(0, 1).reshape(groups, -1, outputs).float()
    unpacked_zeros = 8.0 if zeros is None else unpack_words(zeros, 4, 1)[:, None].float()
    return ((codes - unpacked_zeros) * scales[:, None].float()).flatten(0, 1)


def gemm_in_torch(
    input: "Tensor", q_weight: "Tensor", scales: "Tensor", zeros: "Tensor | None", bias: "Tensor | None"
) -> "Tensor":
    """The product of `gemm`, in torch, which unpacks the whole weight. Tests compare the compiled kernel with it."""
    result = input.float() @ dequantize(q_weight, scales, zeros)
    return (result if bias is None else result + bias.float()).to(input.dtype)


class GemmArguments(ctypes.Structure):
    """The struct `gemm_arguments` of wna16.c, with the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "codes", "scales", "zeros", "bias", "y")),
        *((name, ctypes.c_long) for name in ("tokens", "inputs", "outputs", "group_size")),
        ("bfloat16", ctypes.c_int),
    )


def gemm_in_c(
    input: "Tensor",
    q_weight: "Tensor",
    output: "Tensor",
    scales: "Tensor",
    zeros: "Tensor | None",
    bias: "Tensor | None",
) -> None:
    """`gemm` by the compiled kernel, for float16 and bfloat16.

    Raises ValueError if shapes or dtypes disagree, because the kernel would read past the end of a tensor.
    """
    import torch

    tokens, inputs = input.shape
    groups, outputs = scales.shape
    if inputs % 8 or outputs % BLOCK or inputs % (2 * groups) or q_weight.numel() * 8 != inputs * outputs:
        raise ValueError(
            f"{OPERATOR}: q_weight {(*q_weight.shape,)} or scales {(*scales.shape,)} do not match {inputs} inputs"
        )
    if (zeros is not None and zeros.numel() * 8 != groups * outputs) or (bias is not None and len(bias) != outputs):
        raise ValueError(f"{OPERATOR}: shapes of zeros or bias do not match scales {(*scales.shape,)}")
    if output.shape != (tokens, outputs) or not output.is_contiguous():
        raise ValueError(f"{OPERATOR}: output {(*output.shape,)} does not match {tokens} tokens and {outputs} outputs")
    if any(t is not None and t.dtype != input.dtype for t in (output, scales, bias)):
        raise ValueError(f"{OPERATOR}: scales {scales.dtype}, output {output.dtype}, input {input.dtype} must agree")
    # keep references: copies must live until the kernel returns
    operands = [t if t is None else t.contiguous() for t in (input, q_weight, scales, zeros, bias, output)]
    pointers = [None if t is None else t.data_ptr() for t in operands]
    arguments = GemmArguments(*pointers, tokens, inputs, outputs, inputs // groups, input.dtype == torch.bfloat16)
    if compiled().wna16_gemm(ctypes.byref(arguments)):
        raise MemoryError(f"{OPERATOR}: out of memory for {tokens} x {inputs} activations in float32")


@cache
def uncompiled_reason(dtype: Any) -> str:
    """The reason why the compiled kernel cannot run activations of this dtype, or "" if it can."""
    import torch

    if dtype not in (torch.float16, torch.bfloat16):
        return f"activations are {dtype}"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return f"this {platform.machine()} CPU has no AVX2"
    try:
        compiled()
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).splitlines()
        return f"{SOURCE.name} could not be compiled: {next((line for line in lines if 'error' in line), lines[-1])}"
    return ""


@cache
def warn_once(reason: str) -> None:
    logger.warning("4-bit layers run in plain torch, many times slower than the compiled kernel: %s", reason)


@cache
def compiled() -> ctypes.CDLL:
    """The loaded kernel. It uses torch's threads, because its OpenMP calls bind to the library that torch loaded."""
    folder = cache_folder()
    if folder:
        return ctypes.CDLL(str(compile_kernel(folder)))
    with tempfile.TemporaryDirectory() as scratch:  # once a library is loaded, its file may be removed
        return ctypes.CDLL(str(compile_kernel(Path(scratch))))


def cache_folder() -> Path | None:
    """The user's folder for compiled libraries, or None if it is not writable."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompress"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def compile_kernel(folder: Path) -> Path:
    """The path of the compiled library in `folder`. It is compiled first if the file is missing.

    The file name contains a digest of source, flags and CPU type. Raises OSError or CalledProcessError if compiling
    fails.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    recipe = [*compiler, *FLAGS, platform.machine()]
    digest = hashlib.sha256("\n".join([*recipe, SOURCE.read_text()]).encode()).hexdigest()
    library = folder / f"wna16-{digest[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / library.name
            command = [*compiler, *FLAGS, str(SOURCE), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            built.replace(library)
    return library

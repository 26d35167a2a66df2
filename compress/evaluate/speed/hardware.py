"""A table of edge boards and GPUs: memory, bandwidth and compute capability. And the vLLM kernels that they support.

Bandwidth is bus width times data rate, from public specification pages. Compute capability is from NVIDIA's list,
https://developer.nvidia.com/cuda-gpus; the RTX 3060's is from its specification page. vLLM's limits are from the source
of vLLM 0.32.0: marlin.py, marlin_utils.py and auto_awq.py need compute capability 7.5, and bfloat16 needs 8.0. Nothing
was tested on this hardware.
"""

from dataclasses import dataclass
from typing import Any

from calibration.suggest import did_you_mean
from compress.checkpoint.vllm_models import NO_FLOAT16
from compress.core.errors import QCompressError

GIB, MIB = 2**30, 2**20
UTILIZATION = 0.92  # vLLM's default for --gpu-memory-utilization
MARLIN = 75  # lowest compute capability of vLLM's 4-bit kernel, times ten
BFLOAT16 = 80  # lowest compute capability with bfloat16, times ten
JETSON = "memory is shared with the system; vLLM needs a build for JetPack"


@dataclass(frozen=True)
class Hardware:
    """A GPU or an edge board.

    `memory` is in bytes, and vLLM may use `share` of it. `bandwidth` is in bytes per second. `capability` is CUDA's
    compute capability times ten. None means unknown.
    """

    name: str
    title: str
    memory: int
    share: float
    bandwidth: float | None = None
    capability: int | None = None
    note: str = ""

    @property
    def usable(self) -> int:
        """Bytes that vLLM may use."""
        return int(self.memory * self.share)


HARDWARE = (
    # 128-bit LPDDR5, 6400 MT/s since JetPack 6.1
    Hardware("orin-nano", "Jetson Orin Nano 8GB", 8 * GIB, 0.70, 102.4e9, 87, f"{JETSON}; 68 GB/s before JetPack 6.1"),
    # 128-bit LPDDR5, 6400 MT/s
    Hardware("orin-nx", "Jetson Orin NX 16GB", 16 * GIB, 0.80, 102.4e9, 87, JETSON),
    # 256-bit GDDR6 at 10 Gbit/s; memory as CUDA's deviceQuery reports it
    Hardware("t4", "T4 16GB", 15102 * MIB, UTILIZATION, 320e9, 75, "the rest of 16 GiB is used for memory ECC"),
    # 192-bit GDDR6 at 15 Gbit/s, 128-bit at 17, 384-bit GDDR6X at 21
    Hardware("rtx-3060", "RTX 3060 12GB", 12 * GIB, UTILIZATION, 360e9, 86),
    Hardware("rtx-4060", "RTX 4060 8GB", 8 * GIB, UTILIZATION, 272e9, 89),
    Hardware("rtx-4090", "RTX 4090 24GB", 24 * GIB, UTILIZATION, 1008e9, 89),
)


def find_hardware(names: tuple[str, ...]) -> list[Hardware]:
    """The table's rows with these names, each once. "all" means every row.

    Raises QCompressError if a name is unknown.
    """
    table = {hardware.name: hardware for hardware in HARDWARE}
    if "all" in names:
        return list(HARDWARE)
    if unknown := [name for name in names if name not in table]:
        raise QCompressError(
            f"--hardware {unknown[0]}: unknown name; use {', '.join(table)} or all, or use --gpu-memory 8GB"
            f"{did_you_mean(unknown[0], [*table, 'all'])}"
        )
    return [table[name] for name in dict.fromkeys(names)]


def memory_only(size: int) -> Hardware:
    """A GPU with `size` bytes of memory. Its bandwidth and compute capability are unknown."""
    return Hardware("gpu-memory", f"{size / 1e9:g} GB", size, UTILIZATION)


def kernel_of(hardware: Hardware, config: dict[str, Any]) -> str | None:
    """The name of the vLLM kernel that multiplies packed weights, or "none: " and the reason.

    None if the hardware's compute capability is unknown.
    """
    if hardware.capability is None:
        return None
    dtype = config.get("dtype") or config.get("torch_dtype")
    suffix = ", computed in float16" if dtype == "bfloat16" and hardware.capability < BFLOAT16 else ""
    if reason := unsupported_reason(hardware, config):
        return f"none: {reason}"
    return f"{'Marlin' if 'quantization_config' in config else 'none needed'}{suffix}"


def unsupported_reason(hardware: Hardware, config: dict[str, Any]) -> str | None:
    """The reason why vLLM cannot serve the checkpoint on this hardware in 16 bits, or None if it can.

    Memory is not compared here. Some families overflow float16, and hardware without bfloat16 would serve their
    unquantized weights in float32, at twice the size.
    """
    if hardware.capability is None:
        return None
    if hardware.capability < BFLOAT16 and config.get("model_type") in NO_FLOAT16:
        return f"{config['model_type']} needs bfloat16, which needs compute capability 8.0"
    if hardware.capability < MARLIN and "quantization_config" in config:
        return "vLLM's 4-bit kernels need compute capability 7.5"
    return None

"""A table of edge boards and GPUs: memory, bandwidth and compute capability. And the vLLM kernels that they support.

Bandwidth is that of the public specification pages. Compute capability is from NVIDIA's list,
https://developer.nvidia.com/cuda-gpus; the RTX 3060's and the RTX 4090 D's are from their specification pages. Memory
is what CUDA reports, which is less than the nominal size: `--gpu-memory-utilization` is a share of it. Each comment
names where that number was printed. vLLM's limits are from the source of vLLM 0.32.0: marlin.py, marlin_utils.py and
auto_awq.py need compute capability 7.5, and bfloat16 needs 8.0. Nothing was tested on this hardware.
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
    """A GPU, several equal GPUs, or an edge board.

    `memory` is that of one GPU in bytes, and vLLM may use `share` of it. `bandwidth` is that of one GPU in bytes per
    second. `capability` is CUDA's compute capability times ten. None means unknown. `unified` memory is shared with
    the system.
    """

    name: str
    title: str
    memory: int
    share: float
    bandwidth: float | None = None
    capability: int | None = None
    note: str = ""
    unified: bool = False
    gpus: int = 1

    @property
    def usable(self) -> int:
        """Bytes that vLLM may use on all GPUs."""
        return int(self.memory * self.share) * self.gpus


def jetson(
    name: str, title: str, mib: int, share: float, bandwidth: float, capability: int, more: str = ""
) -> Hardware:
    """The row of a Jetson module with `mib` MiB of memory."""
    note = f"{JETSON}; {more}" if more else JETSON
    return Hardware(name, title, mib * MIB, share, bandwidth, capability, note, unified=True)


HARDWARE = (
    # 128-bit LPDDR5 at 6400 MT/s since JetPack 6.1; tegrastats and torch: 7620 MiB
    jetson("orin-nano", "Jetson Orin Nano 8GB", 7620, 0.75, 102.4e9, 87, "68 GB/s before JetPack 6.1"),
    # 128-bit LPDDR5 at 6400 MT/s; tegrastats: 15656 MiB
    jetson("orin-nx", "Jetson Orin NX 16GB", 15656, 0.80, 102.4e9, 87),
    # 256-bit LPDDR5 at 6400 MT/s; tegrastats and vLLM: 62841 MiB. NVIDIA's guides for this board and Thor use 0.8
    jetson("agx-orin", "Jetson AGX Orin 64GB", 62841, 0.80, 204.8e9, 87),
    # 256-bit LPDDR5X at 8533 MT/s; vLLM: 122.82 GiB
    jetson("agx-thor", "Jetson AGX Thor 128GB", 125767, 0.80, 273e9, 110),
    # 256-bit GDDR6 at 10 Gbit/s; memory as CUDA's deviceQuery reports it
    Hardware("t4", "T4 16GB", 15102 * MIB, UTILIZATION, 320e9, 75, "the rest of 16 GiB is used for memory ECC"),
    # 192-bit GDDR6 at 12.5 Gbit/s; vLLM: 22.04 GiB
    Hardware("l4", "L4 24GB", 22568 * MIB, UTILIZATION, 300e9, 89, "the rest of 24 GiB is used for memory ECC"),
    # 384-bit GDDR6 at 12.5 Gbit/s; torch: 22.06 GiB
    Hardware("a10", "A10 24GB", 22589 * MIB, UTILIZATION, 600e9, 86, "the rest of 24 GiB is used for memory ECC"),
    # 192-bit GDDR6 at 15 Gbit/s; vLLM: 11.63 GiB
    Hardware("rtx-3060", "RTX 3060 12GB", 11909 * MIB, UTILIZATION, 360e9, 86),
    # 128-bit GDDR6 at 17 Gbit/s; vLLM: 7.63 GiB
    Hardware("rtx-4060", "RTX 4060 8GB", 7813 * MIB, UTILIZATION, 272e9, 89),
    # 384-bit GDDR6X at 21 Gbit/s; vLLM: 23.52 GiB
    Hardware("rtx-4090", "RTX 4090 24GB", 24084 * MIB, UTILIZATION, 1008e9, 89),
    # each with the memory of the RTX 4090
    Hardware("4x-rtx-4090d", "4 × RTX 4090 D 24GB", 24084 * MIB, UTILIZATION, 1008e9, 89, "tensor parallel", gpus=4),
    # 512-bit GDDR7 at 28 Gbit/s; vLLM: 31.36 GiB
    Hardware("rtx-5090", "RTX 5090 32GB", 32112 * MIB, UTILIZATION, 1792e9, 120),
    # 384-bit GDDR6 at 18 Gbit/s; vLLM: 44.39 GiB
    Hardware("l40s", "L40S 48GB", 45455 * MIB, UTILIZATION, 864e9, 89, "the rest of 48 GiB is used for memory ECC"),
    # 5120-bit HBM2e, the SXM module; torch: 79.15 GiB
    Hardware("a100", "A100 SXM 80GB", 81049 * MIB, UTILIZATION, 2039e9, 80),
    # 5120-bit HBM3, the SXM module; vLLM: 79.14 GiB
    Hardware("h100", "H100 SXM 80GB", 81039 * MIB, UTILIZATION, 3350e9, 90),
)
NAMES = tuple(hardware.name for hardware in HARDWARE)


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

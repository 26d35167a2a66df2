"""Edge boards and cards as a table: memory, bandwidth, what CUDA calls their generation, and what vLLM runs on them.

Bandwidth is bus width times data rate, both from public specification pages and not from data sheets; capabilities are
those of NVIDIA's list, https://developer.nvidia.com/cuda-gpus (the RTX 3060's from such a page). vLLM's side is read
from the sources of 0.32.0 (marlin.py, marlin_utils.py and auto_awq.py ask for compute capability 7.5; bfloat16 needs
8.0); nothing here was run on these boards.
"""

from dataclasses import dataclass
from typing import Any

from compress.checkpoint.vllm_models import NO_FLOAT16
from compress.core.errors import QCompressError

GIB, MIB = 2**30, 2**20
UTILIZATION = 0.92  # vLLM's default for --gpu-memory-utilization
MARLIN = 75  # the least compute capability of vLLM's 4-bit kernel, times ten
BFLOAT16 = 80
JETSON = "memory is shared with the system; vLLM must be a build for JetPack"


@dataclass(frozen=True)
class Board:
    """`share` is the part of `memory` (bytes) that vLLM may take; `bandwidth` is in bytes per second.

    `capability` is CUDA's compute capability times ten. None: not known.
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
        return int(self.memory * self.share)


BOARDS = (
    # 128-bit LPDDR5, 6400 MT/s from JetPack 6.1 on
    Board("orin-nano", "Jetson Orin Nano 8GB", 8 * GIB, 0.70, 102.4e9, 87, f"{JETSON}; 68 GB/s before JetPack 6.1"),
    # 128-bit LPDDR5, 6400 MT/s
    Board("orin-nx", "Jetson Orin NX 16GB", 16 * GIB, 0.80, 102.4e9, 87, JETSON),
    # 256-bit GDDR6 at 10 Gbit/s; memory as CUDA's deviceQuery counts it
    Board("t4", "T4 16GB", 15102 * MIB, UTILIZATION, 320e9, 75, "of 16 GiB the rest goes to error correction"),
    # 192-bit GDDR6 at 15 Gbit/s, 128-bit at 17, 384-bit GDDR6X at 21
    Board("rtx-3060", "RTX 3060 12GB", 12 * GIB, UTILIZATION, 360e9, 86),
    Board("rtx-4060", "RTX 4060 8GB", 8 * GIB, UTILIZATION, 272e9, 89),
    Board("rtx-4090", "RTX 4090 24GB", 24 * GIB, UTILIZATION, 1008e9, 89),
)


def find_boards(names: tuple[str, ...]) -> list[Board]:
    """The boards of these names, each once, or every one for "all". QCompressError names those that are known."""
    known = {board.name: board for board in BOARDS}
    if "all" in names:
        return list(BOARDS)
    if unknown := [name for name in names if name not in known]:
        raise QCompressError(f"--board {unknown[0]}: not known; take {', '.join(known)} or all, or --gpu-memory 8GB")
    return [known[name] for name in dict.fromkeys(names)]


def plain_memory(size: int) -> Board:
    """A card of which only the memory is known, in bytes."""
    return Board("gpu-memory", f"{size / 1e9:g} GB", size, UTILIZATION)


def kernel_of(board: Board, config: dict[str, Any]) -> str | None:
    """Which of vLLM's kernels multiplies packed weights there, or why none does; None where that is not known."""
    if board.capability is None:
        return None
    dtype = config.get("dtype") or config.get("torch_dtype")
    halves = dtype == "bfloat16" and board.capability < BFLOAT16
    computed = ", computed in float16" if halves else ""
    if refused := refusal(board, config):
        return f"none: {refused}"
    return f"{'Marlin' if 'quantization_config' in config else 'none needed'}{computed}"


def refusal(board: Board, config: dict[str, Any]) -> str | None:
    """Why vLLM cannot serve the checkpoint there in 16 bits, whatever its size; None where nothing speaks against it.

    Plain weights of a family that float16 does not suit would be served in float32, in twice the bytes.
    """
    if board.capability is None:
        return None
    if board.capability < BFLOAT16 and config.get("model_type") in NO_FLOAT16:
        return f"{config['model_type']} needs bfloat16, which begins at compute capability 8.0"
    if board.capability < MARLIN and "quantization_config" in config:
        return "vLLM's 4-bit kernels begin at compute capability 7.5"
    return None

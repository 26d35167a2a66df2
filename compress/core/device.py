"""Choose the device that runs a model, from the value of `--device`."""

from typing import TYPE_CHECKING

from compress.core.errors import BadValueError, QCompressError
from compress.core.options import DEVICES

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> str:
    """The device "cpu" or "cuda" for the option "auto", "cpu" or "cuda". auto means a GPU if torch finds one.

    Raises QCompressError for any other option, and for "cuda" if torch finds no GPU.
    """
    import torch

    if name not in DEVICES:
        raise BadValueError(f"--device {name}: choose {', '.join(DEVICES)}")
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise QCompressError("--device cuda: torch finds no GPU; use --device cpu, or install a torch build for CUDA")
    return "cuda" if gpu and name != "cpu" else "cpu"


def has_bfloat16() -> bool:
    """Whether the GPU has instructions for bfloat16. Older GPUs emulate it, which is slower than float32."""
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def move(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The tensor on a device. The host does not wait for a copy to a GPU."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def rank_device(name: str, rank: int) -> "torch.device":
    """The device of the process with this rank. If `name` does not mean the CPU, ranks are spread over all GPUs."""
    import torch

    if pick_device(name) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())
